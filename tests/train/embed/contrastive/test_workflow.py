"""`stage: contrastive` from the recipe to the checkpoint, in this process: what it refuses, evaluates and leaves."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from llamafactory_embed import Encoder
from llamafactory_embed.data.retrieval.dataset import RetrievalDataset
from llamafactory_embed.data.retrieval.evalset import build_retrieval_eval
from llamafactory_embed.data.retrieval.reader import load_tasks
from llamafactory_embed.data.retrieval.rows import Row
from llamafactory_embed.evaluation.in_training import evaluate_retrieval
from llamafactory_embed.hparams.contrastive import ContrastiveOptions
from llamafactory_embed.loading import backbone as loading
from llamafactory_embed.model.embedding_config import EmbeddingConfig
from llamafactory_embed.train import workflow as train_workflow
from llamafactory_embed.train.embed import tasks
from llamafactory_embed.train.embed.contrastive import workflow
from llamafactory_embed.train.embed.tasks import first_rows, load_train_and_eval_tasks
from tests.e2e.contrastive_runs import LATENT, LORA, RunResult, perform, recipe, write_data


PNG = b"\x89PNG"
INSTRUCTION = "Given a definition, find its noun"
HELD_OUT = ["nouns_heldout", "words_heldout"]

Run = Callable[..., RunResult]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("workflow") / "data")
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    info["nouns"]["instruction"] = info["nouns_heldout"]["instruction"] = INSTRUCTION
    rows: dict[str, list[Any]] = {
        "broken": [{"query": "a", "positive": "b"}, {"query": "a", "postive": "b"}, {"query": "", "positive": "b"}],
        "plain": [{"text": f"line number {number}"} for number in range(16)],
        "with_negatives": [
            {"query": f"query {number}", "positive": f"positive {number}", "negative": f"negative {number}"}
            for number in range(20)
        ],
        "some_negatives": [
            {"query": "a", "positive": "b", "negative": "c"},
            {"query": "d", "positive": "e"},
        ],
        "taught": [
            {
                "query": f"query {number}",
                "positive": f"positive {number}",
                "negative": f"negative {number}",
                "score": [0.9, number / 20],
            }
            for number in range(20)
        ],
        "alike": [{"query": "always", "positive": f"answer {number}"} for number in range(20)],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)), encoding="utf-8")
        info[name] = {"file_name": f"{name}.jsonl", "formatting": "retrieval"}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


@pytest.fixture
def run(tiny_llama: Path, data: Path, tmp_path: Path) -> Run:
    """Perform a recipe in `tmp_path / name`."""
    return lambda name, **options: perform(recipe(tiny_llama, data, tmp_path / name, **options))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever loads a model or a tokenizer fails."""

    def load(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr(workflow, "load_tokenizer", load)


# ---------------------------------------------------------------------------------------------------------------
# What is refused before anything is loaded
# ---------------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bad rows": (
        {"dataset": "nouns,broken"},
        r"2 bad rows(.|\n)*broken\.jsonl:2: .*`postive`(.|\n)*broken\.jsonl:3: `query` is empty",
    ),
    "negatives in some rows": ({"dataset": "some_negatives"}, r"some_negatives\.jsonl:2: this row has no negatives"),
    "bad rows of a stream": ({"dataset": "broken", "streaming": True}, r"2 bad rows(.|\n)*broken\.jsonl:2"),
    "one candidate": (
        {"batch_size": 1, "dataset": "repeating"},
        r"`per_device_train_batch_size: 1` without negatives .* loss of 0",
    ),
    "one candidate, negatives unused": (
        {"dataset": "with_negatives", "batch_size": 1, "num_negatives": 0},
        r"`per_device_train_batch_size: 1` without negatives",
    ),
    "one candidate of a stream": (
        {"dataset": "repeating", "batch_size": 1, "streaming": True},
        r"`per_device_train_batch_size: 1` without negatives",
    ),
    "plain texts": ({"dataset": "plain", "num_negatives": 0}, r"plain texts, each its own positive.*`simcse_dropout`"),
    "plain texts of a stream": ({"dataset": "plain", "num_negatives": 0, "streaming": True}, "`simcse_dropout`"),
    "everything held out": ({"dataset": "plain", "val_size": 16}, "`val_size: 16` would hold out all 16 rows"),
    "all of a stream held out": (
        {"dataset": "plain", "val_size": 16, "streaming": True},
        r"`val_size: 16` would hold out all rows of task `plain`",
    ),
    "plain texts to evaluate on": ({"eval_dataset": "plain"}, r"`eval_dataset`: task `plain` holds plain texts"),
    "a teacher without scores": (
        {"dataset": "with_negatives", "kl_weight": 0.3},
        "`kl_weight` needs a teacher's scores .* no data set of the recipe has a `score` column",
    ),
    "a teacher of some rows of a batch": (
        {"dataset": "taught,with_negatives", "kl_weight": 0.3, "task_batching": "mixed"},
        "`task_batching: mixed` would put rows with and without .* add scores to with_negatives",
    ),
    "a teacher without vectors": (
        {"dataset": "with_negatives", "vector_weight": 1.0},
        "`vector_weight` needs a teacher's vectors",
    ),
    "vectors of a teacher that nobody has": (
        {"dataset": "taught", "objectives": {"taught": {"loss": "vector_distillation"}}},
        "Task `taught`: `contrastive_loss: vector_distillation` needs data with `teacher_vectors`",
    ),
    "a map to no vectors": ({"dataset": "taught", "teacher_projection": True}, "`teacher_projection` maps"),
    "scores that some task has not": (
        {"objectives": {"words": {"loss": "cosent"}}},
        "Task `words`: `contrastive_loss: cosent` needs data with a `score` column",
    ),
    "several objectives in one batch": (
        {"objectives": {"words": {"temperature": 1.0}}, "task_batching": "mixed"},
        "`task_batching: mixed` puts rows of all tasks into one batch, which has one objective",
    ),
    "an objective of no task": ({"objectives": {"word": {}}}, "`objectives` names word, .* did you mean `words`"),
    "streams without sizes": ({"streaming": True}, r"needs the sizes of the tasks"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_loaded(case: str, run: Run, no_model: None) -> None:
    options, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        run("refused", **options)


def test_one_row_with_negatives_is_a_batch(run: Run) -> None:
    result = run("one", dataset="with_negatives", batch_size=1)
    assert all(loss > 0 for loss in result.losses)


@pytest.mark.parametrize(("given", "std"), [({}, 0.02), ({"latents_init_std": 1.0}, 1.0)], ids=["default", "said"])
def test_latents_start_as_the_recipe_says(given: dict[str, float], std: float, run: Run, tmp_path: Path) -> None:
    run("out", **{**LATENT, **given, "latents": 64}, learning_rate=0.0, max_steps=1)
    latents = load_file(tmp_path / "out" / "pooler.safetensors")["latents"]
    assert float(latents.std()) == pytest.approx(std, rel=0.1)


def test_a_teacher_of_one_task_changes_its_batches_alone(run: Run) -> None:
    """Batches are of one task each: of those that both runs have, the ones without scores have the same loss."""
    mixture = {"dataset": "taught,with_negatives", "learning_rate": 0.0, "max_steps": 4, "batch_size": 8}
    alone, joint = run("alone", **mixture).losses, run("joint", **mixture, kl_weight=0.5).losses
    changed = [after - before for before, after in zip(alone, joint, strict=True)]
    assert {gain > 1e-3 for gain in changed} == {True, False}
    assert all(gain == 0 or gain > 1e-3 for gain in changed)


def test_bad_rows_are_skipped_on_demand(run: Run, tmp_path: Path) -> None:
    mixed = {"dataset": "nouns,broken", "num_negatives": 0, "task_batching": "mixed", "max_steps": 1}
    run("skipped", **mixed, skip_bad_rows=True)
    card = (tmp_path / "skipped" / "README.md").read_text(encoding="utf-8")
    assert "| nouns | 64 |" in card
    assert "| broken | 1 |" in card


# ---------------------------------------------------------------------------------------------------------------
# What is left behind
# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(
    tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], RunResult]:
    """A recipe with everything, and what its run measured: it gets worse by a learning rate that is far too high,
    and stops."""
    given = recipe(
        tiny_llama, data, tmp_path_factory.mktemp("finished") / "embedder", **LORA, **LATENT,
        dataset="nouns,with_negatives", task_batching="homogeneous", skip_instruction=True, plot_loss=True,
        query_max_length=40, max_steps=12, learning_rate=2.0, optim="adamw_torch",
        eval_dataset=",".join(HELD_OUT), do_eval=True, eval_on_start=True, eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, metric_for_best_model="ndcg@10",
        early_stopping_steps=2,
    )  # fmt: skip
    return given, perform(given)


def read_metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))


def test_early_stopping_and_the_best_checkpoint(finished: tuple[dict[str, Any], RunResult]) -> None:
    given, result = finished
    scores = [metrics["eval_ndcg@10"] for metrics in result.metrics]
    state = json.loads(Path(given["output_dir"], "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] < given["max_steps"]  # two evaluations without a better score
    after_first_step = scores[1:]  # the score before training has no checkpoint
    assert len(after_first_step) == state["global_step"]
    best = after_first_step.index(max(after_first_step))
    assert len(after_first_step) - 1 - best == given["early_stopping_steps"]
    assert state["best_model_checkpoint"].endswith(f"checkpoint-{best + 1}")
    assert read_metrics(Path(given["output_dir"]))["eval_ndcg@10"] == pytest.approx(max(after_first_step))


def test_evaluation_is_that_of_the_checkpoint(finished: tuple[dict[str, Any], RunResult], data: Path) -> None:
    folder = Path(finished[0]["output_dir"])
    evals = [build_retrieval_eval(task) for task in load_tasks(HELD_OUT, str(data))]
    found = evaluate_retrieval(Encoder(folder), evals, share_over_ranks=False)
    metrics = read_metrics(folder)
    assert {name.removeprefix("eval_") for name in metrics} == {"epoch", *found}
    assert {name: metrics[f"eval_{name}"] for name in found} == pytest.approx(found, abs=1e-6)
    assert 0 < found["nouns_heldout_ndcg@10"] != found["words_heldout_ndcg@10"]


def test_a_quantized_run_is_evaluated_stored_and_resumed(run: Run, data: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        **LORA, "quantization_aware": "int8", "eval_dataset": "nouns_heldout", "do_eval": True, "learning_rate": 0.01,
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch",
    }  # fmt: skip
    metrics = run("whole", **given).metrics
    evals = [build_retrieval_eval(task) for task in load_tasks(["nouns_heldout"], str(data))]
    encoder = Encoder(tmp_path / "whole")
    assert encoder.ranges is not None
    found = evaluate_retrieval(encoder, evals, share_over_ranks=False, precision="int8")
    assert found["int8_ndcg@10"] > 0
    assert {name: metrics[-1][f"eval_{name}"] for name in found} == pytest.approx(found, abs=1e-6)
    run("again", **given, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert Encoder(tmp_path / "again").ranges == encoder.ranges
    bytes_ = encoder.encode(["a noun"], precision="int8")
    assert bytes_.dtype == "int8"


def test_what_mask_tokens_are_trained_for_is_served(run: Run, data: Path, tmp_path: Path) -> None:
    given = {"pooling": "mask", "mask_tokens": 3, "mask_token": "eos", "eval_dataset": "nouns_heldout"}
    result = run("masks", **LORA, **given, do_eval=True, eval_strategy="steps", eval_steps=3, card_samples=2)
    card = (tmp_path / "masks" / "README.md").read_text(encoding="utf-8")
    assert card.partition("## Samples of the data")[2].count("\n| nouns | ") == 2
    config = EmbeddingConfig.load(tmp_path / "masks")
    assert (config.mask_tokens, config.mask_token) == (3, "</s>")
    evals = [build_retrieval_eval(task) for task in load_tasks(["nouns_heldout"], str(data))]
    found = evaluate_retrieval(Encoder(tmp_path / "masks"), evals, share_over_ranks=False)
    assert {name: result.metrics[-1][f"eval_{name}"] for name in found} == pytest.approx(found, abs=1e-6)


def test_the_recipe_is_kept(finished: tuple[dict[str, Any], RunResult]) -> None:
    given, _ = finished
    for folder in (Path(given["output_dir"]), Path(given["output_dir"], "checkpoint-1")):
        assert yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")) == given


def test_the_model_card_says_how_it_was_made(finished: tuple[dict[str, Any], RunResult]) -> None:
    given, _ = finished
    folder = Path(given["output_dir"])
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = ModelCard.load(folder / "README.md")
    assert "base_model" not in yaml.safe_load(header)  # a folder of this machine, whose path is nobody's business
    assert str(folder.parent) not in header + text
    assert f'Encoder("{folder.name}")' in text
    assert "| pooling | latent |" in text
    assert "| longest query / document | 40 / 48 tokens |" in text
    assert f"| nouns | 64 | {INSTRUCTION} |" in text
    assert "| with_negatives | 20 |  |" in text
    for name, value in read_metrics(folder).items():
        if name != "epoch":
            assert f"| {name.removeprefix('eval_')} | {value:.4f} |" in text
    metrics = list(read_metrics(folder).values())
    assert card.data.eval_results
    for each in card.data.eval_results:
        assert each.metric_value in [round(value, 5) for value in metrics]
    assert "Samples of the data" not in text  # nobody has asked for them to be published
    assert "| trained | LoRA, rank" in text
    assert "@misc{oord2018representation," in text


def test_pictures_of_what_people_look_at(finished: tuple[dict[str, Any], RunResult]) -> None:
    for name in ("training_loss.png", "training_eval_ndcg@10.png"):
        assert Path(finished[0]["output_dir"], name).read_bytes().startswith(PNG)


def test_without_an_evaluation_only_losses_are_drawn(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(train_workflow, "plot_loss", lambda folder, keys: drawn.extend(keys))
    run("alone", plot_loss=True, max_steps=1)
    assert drawn == ["loss", "loss/words"]  # of the step's task


@pytest.mark.parametrize(
    ("options", "similarity"),
    [
        ({}, "cosine"),
        ({"similarity": "dot", "normalize_embeddings": False}, "dot"),
        ({"contrastive_loss": "repllama", "dataset": "with_negatives"}, "dot"),
        (
            {
                "contrastive_loss": "cosent",
                "dataset": "scored",
                "num_negatives": 0,
                "similarity": "dot",
                "normalize_embeddings": False,
            },
            "cosine",
        ),
    ],
)
def test_the_checkpoint_says_how_its_loss_compares_texts(
    options: dict[str, Any], similarity: str, run: Run, tmp_path: Path
) -> None:
    run("out", **options, max_steps=1)
    assert EmbeddingConfig.load(tmp_path / "out").similarity == similarity
    assert f"| compared by | {similarity} |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------
# Held-out rows
# ---------------------------------------------------------------------------------------------------------------


def load(data: Path, dataset: str, **options: Any) -> tuple[Any, list[Any]]:
    data_args = {
        "dataset_dir": str(data),
        "max_samples": None,
        "eval_dataset": None,
        "streaming": False,
        "val_size": 0,
        "overwrite_cache": False,
        "preprocessing_num_workers": None,
        "data_shared_file_system": False,
    }
    alone = {"local_process_index": 0, "main_process_first": lambda **_: contextlib.nullcontext()}
    return load_train_and_eval_tasks(
        ContrastiveOptions(),
        Namespace(cache_dir=None, hf_hub_token=None),
        Namespace(**{**data_args, "dataset": dataset.split(","), **options}),
        Namespace(do_train=True, seed=options.get("seed", 1), **alone),
        objectives={},
    )


def test_as_many_processes_prepare_rows_as_the_recipe_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: list[int] = []
    monkeypatch.setattr(tasks, "load_tasks", lambda *words, hub, **settings: found.append(hub.processes) or [])
    for processes in (None, 3):
        load(tmp_path, "any", preprocessing_num_workers=processes)
    assert found == [1, 3]


def rows_of(task: Any) -> list[Row]:
    return list(first_rows(task, 1000))


@pytest.mark.parametrize("streaming", [False, True], ids=["held", "streamed"])
@pytest.mark.parametrize("val_size", [0.25, 7])
def test_a_part_of_each_task_is_held_out(val_size: float, streaming: bool, data: Path) -> None:
    if streaming and val_size < 1:
        pytest.skip("a stream does not know what a share of its rows is; LLaMA-Factory refuses it")
    whole, none = load(data, "nouns,with_negatives")
    train, held_out = load(data, "nouns,with_negatives", val_size=val_size, streaming=streaming)
    assert not none
    for task, kept, held in zip(whole, train, held_out, strict=True):
        count = val_size if val_size >= 1 else len(task.rows) * val_size
        assert len(held.rows) == count
        assert len(rows_of(kept)) == len(task.rows) - count
        assert set(rows_of(kept)) | set(held.rows) == set(task.rows)
        assert (kept.name, kept.instruction) == (held.name, held.instruction) == (task.name, task.instruction)
    again, _ = load(data, "nouns,with_negatives", val_size=val_size, streaming=streaming)
    assert list(map(rows_of, again)) == list(map(rows_of, train))


def test_rows_to_evaluate_on_need_no_negatives(data: Path) -> None:
    """There they only enlarge the corpus."""
    _, (task,) = load(data, "nouns", eval_dataset=["some_negatives"])
    assert [len(row.negatives) for row in task.rows] == [1, 0]
    assert len(build_retrieval_eval(task).corpus) == 3


def test_a_run_with_held_out_rows(run: Run, tmp_path: Path) -> None:
    result = run("held", val_size=0.25, do_eval=True, eval_strategy="steps", eval_steps=2)
    assert read_metrics(tmp_path / "held")["eval_nouns_ndcg@10"] == result.metrics[-1]["eval_nouns_ndcg@10"]


# ---------------------------------------------------------------------------------------------------------------
# Streams
# ---------------------------------------------------------------------------------------------------------------

ONE_PASS = {"dataset": "with_negatives", "batch_size": 5, "max_steps": 4, "learning_rate": 0.0}


def test_a_stream_is_trained_as_held_rows_are(run: Run) -> None:
    """Held rows come in batches of a random order, so that only the sets of losses are equal."""
    held = run("held", **ONE_PASS, disable_shuffling=True).losses
    streamed = run("streamed", **ONE_PASS, disable_shuffling=True, streaming=True).losses
    assert sorted(streamed) == pytest.approx(sorted(held), abs=1e-5)
    shuffled = run("shuffled", **{**ONE_PASS, "max_steps": 8}, streaming=True).losses
    first_pass, second_pass = shuffled[:4], shuffled[4:]
    assert sorted(first_pass) != pytest.approx(sorted(held), abs=1e-5)
    assert sorted(first_pass) != pytest.approx(sorted(second_pass), abs=1e-5)


def test_a_data_worker_gets_no_data_set(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes are not forked, as from Python 3.14 on, it would be pickled anew in every epoch."""
    alone = run("alone", max_steps=3).losses
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    monkeypatch.setattr(RetrievalDataset, "__reduce__", refuse_to_be_pickled, raising=False)
    try:
        assert run("forkserver", max_steps=3, dataloader_num_workers=1).losses == alone
    finally:
        multiprocessing.set_start_method(before, force=True)


def refuse_to_be_pickled(self: RetrievalDataset) -> Any:
    raise AssertionError("a data worker got the data set")


def test_streams_begin_again_and_are_resumed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three passes over the rows, the run broken off in the second one; the same with a data worker."""
    stream = {
        "dataset": "with_negatives", "streaming": True, "batch_size": 5, "max_steps": 11, "val_size": 2,
        "do_eval": True, "save_strategy": "steps", "save_steps": 5,
    }  # fmt: skip
    whole = run("whole", **stream)
    assert len(whole.losses) == len(set(whole.losses)) == stream["max_steps"]
    assert read_metrics(tmp_path / "whole")
    assert "| with_negatives | a stream |" in (tmp_path / "whole" / "README.md").read_text(encoding="utf-8")
    resumed = run(
        "resumed", **stream, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"), dataloader_num_workers=1
    )
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-6)
    assert resumed.parameters.keys() == whole.parameters.keys()
    for name, parameter in whole.parameters.items():
        assert (resumed.parameters[name] - parameter).abs().max() < 1e-6


def test_a_stream_that_fills_no_batch_is_refused(run: Run) -> None:
    with pytest.raises(ValueError, match=r"`per_device_train_batch_size`: a task ends before it fills a batch of 8"):
        run("small", dataset="alike", streaming=True)
