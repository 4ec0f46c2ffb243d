"""`do_predict: true` under `stage: ddm` and `ddm-sft`: texts generated for the rows of `eval_dataset`, and metrics."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from attention_patch import SlidingWindow

from ..evaluation.answers import (
    MARKER,
    answer_accuracy,
    answer_f1,
    contains_answer,
    is_exact_match,
    read_references,
)
from ..files import write_text
from ..hparams.sampling import SamplingOptions
from ..model.families import find_family
from .pictures import DenoisingRecorder, draw_denoising
from .rows import PredictionRow, decode_part
from .sampler import Generated, Sampler
from .settings import SamplingSettings


if TYPE_CHECKING:
    from llamafactory.hparams import GeneratingArguments, TrainingArguments


logger = logging.getLogger(__name__)

PREDICTIONS_NAME = "generated_predictions.jsonl"  # the host's name for the predictions of its stage `sft`

# What the host's metrics of its stage `sft` are made of.
SIMILARITY_PACKAGES = ("jieba", "nltk", "rouge_chinese")


@dataclass(frozen=True)
class Prediction:
    """One line of the file, with the host's keys; for a text with gaps, also their contents."""

    number: int
    prompt: str
    predict: str
    label: str
    tokens: int
    """Generated tokens, without those after the end."""
    gaps: list[str] | None = None
    """What was filled in."""
    gap_labels: list[str] | None = None
    """Empty if the data do not say what is missing."""

    def line(self) -> str:
        row: dict[str, Any] = {"prompt": self.prompt, "predict": self.predict, "label": self.label}
        if self.gaps is not None:
            row |= {"gaps": self.gaps, "gap_labels": self.gap_labels}
        return json.dumps(row, ensure_ascii=False)


def predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[PredictionRow],
    *,
    options: SamplingOptions,
    generating_args: GeneratingArguments,
    training_args: TrainingArguments,
    mask_token: int,
    shift: bool,
    end_tokens: Sequence[int] | None = None,
    block_size: int | None = None,
    sliding_window: SlidingWindow = "keep",
) -> dict[str, float]:
    """Generate for all rows, each rank for its part, write `generated_predictions.jsonl` into `output_dir` and return
    the metrics (on every rank; only the first one writes).

    An answer ends at one of the `end_tokens`, without them at EOS. A row's text depends on the seed and on its place
    in the data, not on batch size or ranks. Complete rows are left out. Each rank also writes what it has so far into
    a file, which is removed when the whole is written.
    """
    rank, ranks = training_args.process_index, training_args.world_size
    numbers = _incomplete_rows(rows, warn=rank == 0)
    model_config = model.get_base_model().config if hasattr(model, "get_base_model") else model.config
    settings = SamplingSettings.from_options(
        options, generating_args, family=find_family(model_config), block_size=block_size, seed=training_args.seed
    )
    if end_tokens is None:
        end_tokens = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    sampler = Sampler(model, tokenizer, settings, mask_token, shift, tuple(end_tokens), sliding_window)
    folder = Path(training_args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)

    started = time.perf_counter()
    part = folder / f"{PREDICTIONS_NAME}.{rank}.part"
    predictions_of_rank = _predict_rows(
        sampler, rows, numbers[rank::ranks], part, training_args, pictures=options.denoising_pictures
    )
    seconds = time.perf_counter() - started

    gathered = _gather((predictions_of_rank, seconds, sampler.forwards))
    predictions = sorted((each for predictions, _, _ in gathered for each in predictions), key=lambda p: p.number)
    if rank == 0:
        path = folder / PREDICTIONS_NAME
        write_text(path, "".join(prediction.line() + "\n" for prediction in predictions))
        logger.info("Predictions are in %s.", path)
    part.unlink()
    tokens = sum(prediction.tokens for prediction in predictions)
    scores = score_predictions(
        [prediction.predict for prediction in predictions], [prediction.label for prediction in predictions]
    )
    filled = [
        pair
        for prediction in predictions
        if prediction.gap_labels
        for pair in zip(prediction.gaps or [], prediction.gap_labels, strict=True)
    ]
    return (
        scores
        | score_gaps(filled)
        | {
            "predict_tokens_per_second": tokens / max(seconds for _, seconds, _ in gathered),
            "predict_forwards": float(sum(forwards for _, _, forwards in gathered)),
            "predict_samples": float(len(predictions)),
        }
    )


def _incomplete_rows(rows: Sequence[PredictionRow], warn: bool) -> list[int]:
    """The numbers of the rows in which something is to be predicted."""
    if not rows:
        raise ValueError("`do_predict` found no rows: `eval_dataset` holds none that can be predicted.")
    numbers = [number for number, row in enumerate(rows) if not row.is_complete]
    if not numbers:
        raise ValueError(
            f"`predict_task: infilling` has nothing to fill: none of the {len(rows)} rows of `eval_dataset` has a gap."
        )
    if len(numbers) < len(rows) and warn:
        logger.warning("%d of %d rows have no gap to fill and are left out.", len(rows) - len(numbers), len(rows))
    return numbers


def _predict_rows(
    sampler: Sampler,
    rows: Sequence[PredictionRow],
    numbers: Sequence[int],
    part: Path,
    training_args: TrainingArguments,
    pictures: int,
) -> list[Prediction]:
    """Predict the rows with these numbers, and write them batch by batch into the file `part`."""
    predictions: list[Prediction] = []
    silent = training_args.disable_tqdm or training_args.process_index > 0
    with (
        part.open("w", encoding="utf-8") as file,
        tqdm(total=len(numbers), desc="Predicting", disable=silent) as progress,
    ):
        for batch in _batches(rows, numbers, training_args.per_device_eval_batch_size):
            predicted = _predict_batch(sampler, rows, batch, part.parent, pictures)
            predictions += predicted
            file.writelines(prediction.line() + "\n" for prediction in predicted)
            file.flush()
            progress.update(len(batch))
    return predictions


def _batches(rows: Sequence[PredictionRow], numbers: Iterable[int], size: int) -> Iterator[list[int]]:
    """The rows' numbers, those of similar length together; the longest first, so that what does not fit into memory
    fails at the start."""
    order = sorted(numbers, key=lambda number: -len(rows[number].tokens))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _predict_batch(
    sampler: Sampler, rows: Sequence[PredictionRow], numbers: Sequence[int], folder: Path, pictures: int
) -> list[Prediction]:
    batch = [rows[number] for number in numbers]
    shown = {index: number for index, number in enumerate(numbers) if number < pictures}
    recorder = DenoisingRecorder(sorted(shown)) if shown else None
    if batch[0].holes is None:
        generated = sampler.complete([row.tokens for row in batch], numbers, watch=recorder)
    else:
        generated = sampler.fill(
            [row.tokens for row in batch], [row.holes or [] for row in batch], numbers, watch=recorder
        )
    for index, number in shown.items():
        assert recorder is not None
        draw_denoising(recorder.snapshots(index), sampler.tokenizer, folder / f"denoising_{number}.gif")
    return [_prediction(sampler, *each) for each in zip(numbers, batch, generated, strict=True)]


def _prediction(sampler: Sampler, number: int, row: PredictionRow, generated: Generated) -> Prediction:
    if row.holes is None:
        prompt, label = sampler.decode(row.tokens, skip_special_tokens=False), sampler.decode(row.label)
        return Prediction(number, prompt, sampler.decode(generated.tokens), label, len(generated.tokens))
    tokenizer = sampler.tokenizer
    mask = tokenizer.convert_ids_to_tokens(sampler.mask_token)
    text = generated.text[len(generated.text) - len(row.tokens) :]  # a text that begins with its gap got a BOS
    return Prediction(
        number,
        row.show_gaps(tokenizer, mask or "_"),
        sampler.decode(generated.text),
        sampler.decode(row.label),
        len(generated.tokens),
        [decode_part(tokenizer, text, gap) for gap in row.gaps()],
        [decode_part(tokenizer, row.label, gap) for gap in row.gaps()] if row.label else [],
    )


def _gather(of_this_rank: Any) -> list[Any]:
    """What each rank has, on all of them."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [of_this_rank]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, of_this_rank)
    return gathered


# ------------------------------------------------------ metrics ------------------------------------------------------


def score_predictions(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Exact matches, SQuAD's EM and F1, answers that are contained, answers to word problems, BLEU and ROUGE in
    percent, over the rows that have a label; no metric without labels. A label may be a list of answers, of which the
    best counts; for BLEU and ROUGE, the first."""
    pairs = [(prediction, label) for prediction, label in zip(predictions, labels, strict=True) if label.strip()]
    if not pairs:
        return {}
    referenced = [(prediction, read_references(label)) for prediction, label in pairs]
    matches = [prediction.strip() in map(str.strip, references) for prediction, references in referenced]
    metrics = {
        "predict_exact_match": percent(matches),
        "predict_em": percent([is_exact_match(*pair) for pair in referenced]),
        "predict_f1": percent([answer_f1(*pair) for pair in referenced]),
        "predict_contains": percent([contains_answer(*pair) for pair in referenced]),
    }
    problems = [(prediction, label) for prediction, label in pairs if MARKER in label]
    if problems:
        metrics["predict_answer_match"] = 100 * answer_accuracy(*map(list, zip(*problems, strict=True)))
    return metrics | similarity([(prediction, references[0]) for prediction, references in referenced])


def score_gaps(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """SQuAD's EM, BLEU and ROUGE of what was filled in alone, in percent; no metric where nobody knows what was
    missing."""
    pairs = [(gap, label) for gap, label in pairs if label.strip()]
    if not pairs:
        return {}
    matches = percent([is_exact_match(gap, [label]) for gap, label in pairs])
    return {"predict_gap_em": matches} | similarity(pairs, prefix="predict_gap_")


def percent(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values)


def similarity(pairs: Sequence[tuple[str, str]], prefix: str = "predict_") -> dict[str, float]:
    """BLEU-4 and ROUGE as the host computes them, where the packages for it are installed."""
    missing = [name for name in SIMILARITY_PACKAGES if find_spec(name) is None]
    if missing:
        logger.info("BLEU and ROUGE are left out: pip install %s.", " ".join(missing).replace("_", "-"))
        return {}
    import numpy as np
    from llamafactory.train.sft.metric import ComputeSimilarity
    from transformers import EvalPrediction

    compute = ComputeSimilarity(tokenizer=_TextsAsTokens([text for pair in pairs for text in pair]))
    rows = np.arange(2 * len(pairs)).reshape(-1, 2)
    scores = compute(EvalPrediction(predictions=rows[:, :1], label_ids=rows[:, 1:]))
    return {f"{prefix}{name}": float(score) for name, score in (scores or {}).items()}


class _TextsAsTokens:
    """A tokenizer whose tokens are whole texts: the host's metric decodes tokens, and ours are texts already."""

    pad_token_id = 0

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def batch_decode(self, rows: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        return [self.texts[row[0]] for row in rows]
