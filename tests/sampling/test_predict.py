"""`predict`: rows of prompts, nothing and gaps; the file, metrics, ranks; pictures."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image, ImageSequence

from llamafactory_embed.data.documents import DocumentProcessor
from llamafactory_embed.hparams.ddm import DiffusionTuningOptions
from llamafactory_embed.hparams.sampling import SamplingOptions
from llamafactory_embed.sampling import predict as module
from llamafactory_embed.sampling.pictures import DenoisingRecorder, draw_denoising
from llamafactory_embed.sampling.predict import PREDICTIONS_NAME, predict, score_gaps, score_predictions, similarity
from llamafactory_embed.sampling.rows import PredictionRow, parse_gaps, row_of_answer, rows_of_texts
from llamafactory_embed.sampling.sampler import Sampler
from llamafactory_embed.sampling.settings import SamplingSettings
from llamafactory_embed.train.ddm.prediction import rows_of_answers, rows_of_documents
from tests.tiny_models import tiny_model, tiny_tokenizer


MASK = 304


def generating(**changes: Any) -> SimpleNamespace:
    """The host's GeneratingArguments."""
    values = {
        "do_sample": True,
        "temperature": 0.95,
        "top_p": 0.7,
        "top_k": 50,
        "max_new_tokens": 6,
        "repetition_penalty": 1.0,
    }
    return SimpleNamespace(**values | changes)


def training(folder: Path, rank: int = 0, ranks: int = 1, **changes: Any) -> SimpleNamespace:
    values = {
        "output_dir": str(folder),
        "process_index": rank,
        "world_size": ranks,
        "per_device_eval_batch_size": 3,
        "disable_tqdm": True,
        "seed": 3,
    }
    return SimpleNamespace(**values | changes)


def run(rows: list[PredictionRow], folder: Path, options: SamplingOptions | None = None, **changes: Any) -> Any:
    arguments = {"generating_args": generating(), "training_args": training(folder)} | changes
    return predict(
        tiny_model("llama", vocab_size=310),
        tiny_tokenizer(),
        rows,
        options=options or SamplingOptions(diffusion_steps=6),
        mask_token=MASK,
        shift=True,
        **arguments,
    )


def read(folder: Path) -> list[dict[str, Any]]:
    with (folder / PREDICTIONS_NAME).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def prompts() -> list[PredictionRow]:
    texts = ["The people", "Peace with all nations is", "Trade", "A year", "In the", "Congress will be"]
    return [PredictionRow(tiny_tokenizer()(text)["input_ids"], tiny_tokenizer()(" so")["input_ids"]) for text in texts]


def test_file_has_a_line_for_each_row_in_order(tmp_path: Path) -> None:
    metrics = run(prompts(), tmp_path)
    lines = read(tmp_path)
    assert [line["prompt"] for line in lines] == [tiny_tokenizer().decode(row.tokens) for row in prompts()]
    assert {tuple(line) for line in lines} == {("prompt", "predict", "label")}
    assert [line["label"] for line in lines] == [" so"] * 6
    assert metrics["predict_samples"] == 6
    assert metrics["predict_tokens_per_second"] > 0
    assert metrics["predict_exact_match"] == 0
    assert [path.name for path in tmp_path.iterdir()] == [PREDICTIONS_NAME]


def test_batches_and_ranks_change_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(prompts(), tmp_path / "whole")
    run(prompts(), tmp_path / "single", training_args=training(tmp_path / "single", per_device_eval_batch_size=1))
    run(prompts(), tmp_path / "other", training_args=training(tmp_path / "other", seed=4))
    assert read(tmp_path / "single") == read(tmp_path / "whole")
    assert read(tmp_path / "other") != read(tmp_path / "whole")

    parts: list[Any] = []  # two ranks, one after the other
    for rank in (1, 0):
        monkeypatch.setattr(module, "_gather", lambda own: parts.append(own) or list(parts))
        run(prompts(), tmp_path / "ranks", training_args=training(tmp_path / "ranks", rank, 2))
    assert [len(part[0]) for part in parts] == [3, 3]
    assert read(tmp_path / "ranks") == read(tmp_path / "whole")


def test_an_interrupted_run_keeps_its_old_file_and_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(prompts(), tmp_path)
    before = read(tmp_path)
    complete = Sampler.complete
    calls: list[int] = []

    def interrupted(self: Sampler, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return complete(self, *args, **kwargs)

    monkeypatch.setattr(Sampler, "complete", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(prompts(), tmp_path, training_args=training(tmp_path, seed=9))
    assert read(tmp_path) == before
    (part,) = tmp_path.glob("*.part")
    assert len(part.read_text("utf-8").splitlines()) == 3


def test_nothing_to_predict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`eval_dataset` holds none"):
        run([], tmp_path)


def test_gaps_are_filled_in_place(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    texts = [
        tokenizer("The people of the United States are at peace")["input_ids"],
        tokenizer("Trade is good")["input_ids"],
    ]
    options = SamplingOptions(predict_task="infilling", gap_tokens=3, diffusion_steps=3)
    rows = rows_of_texts([[*text, 1] for text in texts], options, MASK, end_token=1)
    assert [sum(row.holes or []) for row in rows] == [3, 3]
    run(rows, tmp_path, options)
    for text, row, line in zip(texts, rows, read(tmp_path), strict=True):
        assert line["label"] == tokenizer.decode(text, skip_special_tokens=True)
        first = (row.holes or []).index(True)
        before, after = tokenizer.decode(text[1:first]), tokenizer.decode(text[first + 3 :])
        assert line["predict"].startswith(before)
        assert line["predict"].endswith(after)
        assert line["predict"] == before + line["gaps"][0] + after
        assert line["gap_labels"] == [tokenizer.decode(text[first : first + 3])]


def test_what_fills_gaps_that_the_data_do_not_know(tmp_path: Path) -> None:
    """At the start, before which a BOS is put, and in the middle."""
    given = tiny_tokenizer()(" are", add_special_tokens=False)["input_ids"]
    text = [MASK, *given, MASK, MASK, *given]
    options = SamplingOptions(predict_task="infilling", diffusion_steps=3)
    metrics = run(rows_of_texts([text], options, MASK, 1), tmp_path, options)
    (line,) = read(tmp_path)
    assert line["gap_labels"] == []
    assert line["predict"] == f"{line['gaps'][0]} are{line['gaps'][1]} are"
    assert not [name for name in metrics if name.startswith("predict_gap")]


def rows_of_cut_documents(cutoff: int, options: SamplingOptions) -> list[PredictionRow]:
    """Documents of 0 to 9 tokens besides BOS and EOS, as they come from the loader."""
    text = "the house of the people and the state of things"
    words = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
    documents = [tiny_tokenizer().decode(words[:length]) for length in range(1, 10)]
    data_args = SimpleNamespace(cutoff_len=cutoff, template=None)
    processor = DocumentProcessor(None, tiny_tokenizer(), None, data_args, line_by_line=False, packing=True)  # type: ignore[arg-type]
    loaded = processor.preprocess_dataset({"_prompt": [[{"content": document}] for document in documents]})
    examples = [
        {"input_ids": tokens, "lengths": lengths}
        for tokens, lengths in zip(loaded["input_ids"], loaded["lengths"], strict=True)
    ]
    return rows_of_documents(examples, options, MASK, 1)


@pytest.mark.parametrize("task", ["infilling", "prompt", "unconditional"])
@pytest.mark.parametrize("cutoff", [1, 2, 3, 4, 5, 6, 7, 32])
def test_documents_of_any_length_are_predicted(
    cutoff: int, task: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What remains of a document after a cut may be its EOS alone, in which nothing is missing."""
    options = SamplingOptions(predict_task=task, gap_tokens=2, prompt_tokens=2, diffusion_steps=2)  # type: ignore[arg-type]
    rows = rows_of_cut_documents(cutoff, options)
    lonely = [number for number, row in enumerate(rows) if row.is_complete]
    assert bool(lonely) == (task == "infilling" and cutoff < 32)
    with caplog.at_level("WARNING"):
        metrics = run(rows, tmp_path, options)
    assert metrics["predict_samples"] == len(read(tmp_path)) == len(rows) - len(lonely)
    warning = f"{len(lonely)} of {len(rows)} rows have no gap to fill and are left out."
    assert (warning in caplog.text) == bool(lonely)


def test_rows_that_are_left_out_change_no_text(tmp_path: Path) -> None:
    """A row's number, which decides what it draws, is its place in the data."""
    options = SamplingOptions(predict_task="infilling", gap_tokens=3, diffusion_steps=3)
    texts = [row.tokens * 3 for row in prompts()]
    filled = [rows_of_texts([text], options, MASK, 1)[0] for text in texts]
    complete = PredictionRow([], [], [])
    run(filled, tmp_path / "all", options)
    run([filled[0], complete, *filled[2:]], tmp_path / "some", options)
    everything = read(tmp_path / "all")
    assert read(tmp_path / "some") == [everything[0], *everything[2:]]


def test_rows_that_are_all_complete_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`predict_task: infilling` has nothing to fill: none of the 2 rows"):
        run([PredictionRow([0], [0], [False])] * 2, tmp_path, SamplingOptions(predict_task="infilling"))


def test_rows_of_plain_texts() -> None:
    text = [0, 10, 11, 12, 13, 14, 1]
    (row,) = rows_of_texts([text], SamplingOptions(prompt_tokens=3), MASK, 1)
    assert row == PredictionRow([0, 10, 11], [12, 13, 14, 1])
    (row,) = rows_of_texts([text], SamplingOptions(predict_task="unconditional"), MASK, 1)
    assert row == PredictionRow([], [])
    infilling = SamplingOptions(predict_task="infilling", gap_tokens=2)
    (row,) = rows_of_texts([text], infilling, MASK, 1)
    assert row == PredictionRow(text[:-1], text[:-1], [False, False, True, True, False, False])
    (row,) = rows_of_texts([[0, MASK, 11, MASK]], infilling, MASK, 1)
    assert row == PredictionRow([0, MASK, 11, MASK], [], [False, True, False, True])


def test_rows_of_conversations() -> None:
    tokens, is_answer = [0, 5, 6, 7, 8, 9, 10, 1], [False, False, True, False, False, True, True, True]
    assert row_of_answer(tokens, is_answer, SamplingOptions()) == PredictionRow([0, 5, 6, 7, 8], [9, 10, 1])
    row = row_of_answer(tokens, is_answer, SamplingOptions(predict_task="infilling", gap_tokens=1))
    assert row == PredictionRow(tokens, tokens, [index == 6 for index in range(8)])


@pytest.mark.parametrize("task", ["prompt", "infilling"])
def test_an_empty_answer_leaves_its_prompt(task: str, tmp_path: Path) -> None:
    options = DiffusionTuningOptions(predict_task=task, gap_tokens=2, diffusion_steps=2)  # type: ignore[arg-type]
    prompt, answer = [0, 40, 41], [50, 51, 52]
    examples = [
        {"input_ids": prompt + answer, "labels": [-100] * 3 + answer},
        {"input_ids": prompt, "labels": [-100] * 3},
    ]
    rows = rows_of_answers(examples, options, 16, None)
    assert [row.tokens for row in rows] == ([prompt, prompt] if task == "prompt" else [prompt + answer, prompt])
    assert [row.is_complete for row in rows] == [False, task == "infilling"]
    assert run(rows, tmp_path, options)["predict_samples"] == (2 if task == "prompt" else 1)


def test_gaps_of_a_written_text() -> None:
    tokenizer = tiny_tokenizer()
    tokens, holes = parse_gaps("The [[3]] of [[1]]", tokenizer, MASK)
    assert [token for token, hole in zip(tokens, holes, strict=True) if hole] == [MASK] * 4
    given = [token for token, hole in zip(tokens, holes, strict=True) if not hole]
    assert tokenizer.decode(given) == "<s>The  of "
    with pytest.raises(ValueError, match=r"write \[\[8\]\]"):
        parse_gaps("no gap", tokenizer, MASK)


# --------------------------------------------------- metrics ----------------------------------------------------


def test_metrics_count_rows_with_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIMILARITY_PACKAGES", ("no_such_package",))
    assert score_predictions(["a", "b"], ["", " "]) == {}
    assert score_predictions(["a1 ", "b", "c"], ["a1", "x", ""]) == {
        "predict_exact_match": 50.0,
        "predict_em": 50.0,
        "predict_f1": 50.0,
        "predict_contains": 50.0,
    }
    assert score_predictions(["The Black Sea."], ["black sea"]) == {
        "predict_exact_match": 0.0,
        "predict_em": 100.0,
        "predict_f1": 100.0,
        "predict_contains": 100.0,
    }
    answers = '["Charles Darwin", "Darwin"]'
    assert score_predictions(["Darwin", "It was Darwin.", "Mendel"], [answers] * 3) == {
        "predict_exact_match": pytest.approx(100 / 3),
        "predict_em": pytest.approx(100 / 3),
        "predict_f1": pytest.approx(100 * (1 + 2 / 4 + 0) / 3),
        "predict_contains": pytest.approx(200 / 3),
    }
    scores = score_predictions(["so #### 12", "#### 3", "12"], ["#### 12.0", "#### 4", "12"])
    assert scores["predict_answer_match"] == 50.0
    assert scores["predict_exact_match"] == pytest.approx(100 / 3)


def test_gaps_are_scored_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(" The dog slept.", " A dog slept!"), (" no", " yes"), (" ", " yes"), ("x", " ")]
    monkeypatch.setattr(module, "SIMILARITY_PACKAGES", ("no_such_package",))
    assert score_gaps(pairs) == {"predict_gap_em": pytest.approx(100 / 3)}
    assert score_gaps([("a", " ")]) == score_gaps([]) == {}


def test_rouge_of_gaps_is_that_of_the_missing_text_alone() -> None:
    for name in module.SIMILARITY_PACKAGES:
        pytest.importorskip(name)
    scores = score_gaps([(" the cat sat down", " the cat lay down"), (" dogs", " a bird flew away")])
    assert scores["predict_gap_rouge-1"] == pytest.approx(100 * (3 / 4 + 0) / 2, abs=0.1)
    assert scores["predict_gap_rouge-2"] == pytest.approx(100 * (1 / 3 + 0) / 2, abs=0.1)
    assert scores["predict_gap_rouge-l"] == pytest.approx(100 * (3 / 4 + 0) / 2, abs=0.1)
    assert "predict_rouge-1" not in scores


def test_similarity_is_the_hosts() -> None:
    for name in module.SIMILARITY_PACKAGES:
        pytest.importorskip(name)
    scores = similarity([("the cat sat down", "the cat sat down"), ("dogs", "a bird flew away")])
    assert scores["predict_rouge-1"] == pytest.approx(50, abs=0.1)
    assert scores["predict_bleu-4"] >= 50


# --------------------------------------------------- pictures ---------------------------------------------------


def test_animation_shows_every_step(tmp_path: Path) -> None:
    settings = SamplingSettings(steps=4, max_new_tokens=8)
    sampler = Sampler(tiny_model("llama", vocab_size=310), tiny_tokenizer(), settings, MASK, shift=True)
    recorder = DenoisingRecorder([1])
    sampler.complete([[0, 5], [0, 6, 7]], watch=recorder)
    snapshots = recorder.snapshots(1)
    assert [sum(each.masked) for each in snapshots] == [8, 6, 4, 2, 0]
    assert snapshots[-1].tokens[:3] == (0, 6, 7)

    draw_denoising(snapshots, sampler.tokenizer, tmp_path / "text.gif")
    with Image.open(tmp_path / "text.gif") as animation:
        frames = [frame.convert("RGB").tobytes() for frame in ImageSequence.Iterator(animation)]
    assert len(frames) == 6  # one more, without colour, at the end
    assert len(set(frames)) == 6

    draw_denoising(snapshots, sampler.tokenizer, tmp_path / "text.png")
    with Image.open(tmp_path / "text.png") as picture:
        colours = {colour for _, colour in picture.getcolors(100000)}
    reddest = max(colours, key=lambda colour: colour[0] - colour[2])
    bluest = max(colours, key=lambda colour: colour[2] - colour[0])
    assert reddest[0] - reddest[2] > 100
    assert bluest[2] - bluest[0] > 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.gif", "text.png"]
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_denoising([], sampler.tokenizer, tmp_path / "empty.gif")


def test_pictures_of_the_first_rows(tmp_path: Path) -> None:
    run(prompts(), tmp_path, SamplingOptions(diffusion_steps=3, denoising_pictures=2))
    assert sorted(path.name for path in tmp_path.glob("*.gif")) == ["denoising_0.gif", "denoising_1.gif"]
