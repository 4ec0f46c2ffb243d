"""`do_predict: true` under `stage: ddm` and `ddm-sft`: texts generated for the rows of `eval_dataset`."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from attention_patch import SlidingWindow

from ..hparams.sampling import SamplingOptions
from ..model.families import find_family
from .metrics import score_predictions
from .pictures import DenoisingRecorder, draw_denoising
from .rows import PredictionRow
from .sampler import Generated, Sampler
from .settings import SamplingSettings


if TYPE_CHECKING:
    from llamafactory.hparams import GeneratingArguments, TrainingArguments


logger = logging.getLogger(__name__)

PREDICTIONS_NAME = "generated_predictions.jsonl"  # the host's name for the predictions of its stage `sft`


@dataclass(frozen=True)
class Prediction:
    """One line of the file, with the host's keys."""

    number: int
    prompt: str
    predict: str
    label: str
    tokens: int
    """Generated tokens, without those behind the end."""

    def line(self) -> str:
        return json.dumps({"prompt": self.prompt, "predict": self.predict, "label": self.label}, ensure_ascii=False)


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
    in the data, not on batch size or ranks. Each rank also writes what it has so far into a file of its own, which
    goes when the whole is written.
    """
    if not rows:
        raise ValueError("`do_predict` found no rows: `eval_dataset` holds none that can be predicted.")
    model_config = model.get_base_model().config if hasattr(model, "get_base_model") else model.config
    settings = SamplingSettings.from_options(
        options, generating_args, family=find_family(model_config), block_size=block_size, seed=training_args.seed
    )
    if end_tokens is None:
        end_tokens = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    sampler = Sampler(model, tokenizer, settings, mask_token, shift, tuple(end_tokens), sliding_window)
    folder = Path(training_args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rank, ranks = training_args.process_index, training_args.world_size

    started = time.perf_counter()
    part = folder / f"{PREDICTIONS_NAME}.{rank}.part"
    own: list[Prediction] = []
    with (
        part.open("w", encoding="utf-8") as file,
        tqdm(total=len(rows[rank::ranks]), desc="Predicting", disable=training_args.disable_tqdm or rank > 0) as bar,
    ):
        numbers = range(rank, len(rows), ranks)
        for batch in _batches(rows, numbers, training_args.per_device_eval_batch_size):
            for prediction in _predict_batch(sampler, rows, batch, folder, options.denoising_pictures):
                own.append(prediction)
                file.write(prediction.line() + "\n")
            file.flush()
            bar.update(len(batch))
    seconds = time.perf_counter() - started

    gathered = _gather((own, seconds, sampler.forwards))
    predictions = sorted((each for part_of_rank, _, _ in gathered for each in part_of_rank), key=lambda p: p.number)
    if training_args.process_index == 0:
        _write_whole(folder / PREDICTIONS_NAME, predictions)
    part.unlink()
    tokens = sum(prediction.tokens for prediction in predictions)
    metrics = score_predictions(
        [prediction.predict for prediction in predictions], [prediction.label for prediction in predictions]
    )
    metrics["predict_tokens_per_second"] = tokens / max(seconds for _, seconds, _ in gathered)
    metrics["predict_forwards"] = float(sum(forwards for _, _, forwards in gathered))
    metrics["predict_samples"] = float(len(predictions))
    return metrics


def _batches(rows: Sequence[PredictionRow], numbers: Iterable[int], size: int) -> Iterator[list[int]]:
    """The rows' numbers, those of like length together; the longest first, so that what does not fit into memory fails
    at the start."""
    order = sorted(numbers, key=lambda number: -len(rows[number].tokens))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _predict_batch(
    sampler: Sampler, rows: Sequence[PredictionRow], numbers: Sequence[int], folder: Path, pictures: int
) -> list[Prediction]:
    chosen = [rows[number] for number in numbers]
    shown = {index: number for index, number in enumerate(numbers) if number < pictures}
    recorder = DenoisingRecorder(sorted(shown)) if shown else None
    if chosen[0].holes is None:
        generated = sampler.complete([row.tokens for row in chosen], numbers, watch=recorder)
    else:
        generated = sampler.fill(
            [row.tokens for row in chosen], [row.holes or [] for row in chosen], numbers, watch=recorder
        )
    for index, number in shown.items():
        assert recorder is not None
        draw_denoising(recorder.snapshots(index), sampler.tokenizer, folder / f"denoising_{number}.gif")
    return [_prediction(sampler, *each) for each in zip(numbers, chosen, generated, strict=True)]


def _prediction(sampler: Sampler, number: int, row: PredictionRow, generated: Generated) -> Prediction:
    if row.holes is None:
        prompt, label = sampler.decode(row.tokens, skip_special_tokens=False), sampler.decode(row.label)
        return Prediction(number, prompt, sampler.decode(generated.tokens), label, len(generated.tokens))
    mask = sampler.tokenizer.convert_ids_to_tokens(sampler.mask_token)
    return Prediction(
        number,
        row.show_gaps(sampler.tokenizer, mask or "_"),
        sampler.decode(generated.text),
        sampler.decode(row.label),
        len(generated.tokens),
    )


def _gather(own: Any) -> list[Any]:
    """What each rank has, on all of them."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [own]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered


def _write_whole(path: Path, predictions: Iterable[Prediction]) -> None:
    """To a temporary name, then rename: a reader never sees half a file."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(prediction.line() + "\n" for prediction in predictions), encoding="utf-8")
    os.replace(temporary, path)
    logger.info("Predictions are in %s.", path)
