"""`llamafactory-embed eval` from its arguments to its files, with the real mteb."""

from __future__ import annotations

import gc
import itertools
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import mteb
import pytest
import pytrec_eval
import yaml
from datasets import Dataset
from mteb.tasks.instruction_reranking.eng import core17_instruction_retrieval

from llamafactory_embed import Encoder
from llamafactory_embed.evaluation import lexical, models, revisions
from llamafactory_embed.evaluation.groups import GROUPS
from llamafactory_embed.evaluation.report import SECOND_SCORES
from llamafactory_embed.evaluation.run_files import run_lines
from llamafactory_embed.evaluation.tasks import choose_tasks
from llamafactory_embed.loading.checkpoint import save_checkpoint
from tests.embedders import PROSE, make_embedder
from tests.evaluation.conftest import write_lines
from tests.tiny_models import tiny_tokenizer


Command = Callable[..., tuple[int, str, str]]


def read_summary(folder: Path) -> dict[tuple[str, str], dict[str, float]]:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {(line["task"], line["metric"]): line["scores"] for line in summary["scores"]}


def pairs_file(folder: Path) -> Path:
    rows = [{"sentence1": a, "sentence2": b, "score": n} for n, (a, b) in enumerate(itertools.pairwise(PROSE))]
    return write_lines(folder / "pairs.jsonl", rows)


def test_models_sizes_and_reference_lines_are_compared(
    command: Command, checkpoint: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    words = ["eval", checkpoint, "--tasks", beir, pairs_file(tmp_path), "--dimensions", 8, 32, "--output", output]
    words += ["--baseline", "bm25", "tfidf"]
    code, shown, _ = command(*words)
    assert code == 0
    name = revisions.name_of_folder(checkpoint)
    scores = read_summary(output)
    assert set(scores[("following_lines", "ndcg_at_10")]) == {f"{name} (8)", f"{name} (32)", "bm25", "tfidf"}
    assert len(set(scores[("following_lines", "ndcg_at_10")].values())) == 4  # no size has the other's results
    assert set(scores[("pairs", "spearman")]) == {f"{name} (8)", f"{name} (32)"}  # words are not compared in pairs
    for task, model, score in [
        (task, model, score) for (task, _), found in scores.items() for model, score in found.items()
    ]:
        assert f"{100 * score:.2f}" in shown, (task, model)
    assert (output / "summary.png").read_bytes().startswith(b"\x89PNG")
    assert f"| {' | '.join(['task', 'metric', f'{name} (8)', f'{name} (32)', 'bm25', 'tfidf'])} |" in (
        output / "summary.md"
    ).read_text(encoding="utf-8")

    # What was judged is not judged again; on other data it is.
    monkeypatch.setattr(models, "load_encoder", lambda *args: pytest.fail("the model is not needed"))
    assert command(*words)[:2] == (0, shown)
    assert read_summary(output) == scores
    monkeypatch.undo()
    write_lines(tmp_path / "pairs.jsonl", [{"sentence1": a, "sentence2": a[::-1], "score": len(a)} for a in PROSE])
    assert command(*words)[0] == 0
    again = read_summary(output)
    assert again[("following_lines", "ndcg_at_10")] == scores[("following_lines", "ndcg_at_10")]
    assert again[("pairs", "spearman")] != scores[("pairs", "spearman")]


def test_a_recipe_has_the_same_options_and_arguments_win(
    command: Command, checkpoint: Path, beir: Path, tmp_path: Path
) -> None:
    recipe = {
        "checkpoints": [str(checkpoint)],
        "tasks": [str(beir)],
        "output": str(tmp_path / "recipe"),
        "names": ["me/mine"],
        "prompts": {"query": "@next_line"},
    }
    path = tmp_path / "judge.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert command("eval", path)[0] == 0
    (with_prompt,) = read_summary(tmp_path / "recipe").values()
    assert set(with_prompt) == {"me/mine"}

    words = ["--tasks", beir, "--names", "me/mine", "--output", tmp_path / "words"]
    assert command("eval", checkpoint, *words, "--prompts", "query=@next_line")[0] == 0
    assert list(read_summary(tmp_path / "words").values()) == [with_prompt]
    assert command("eval", path, "--prompts", "query=", "--output", tmp_path / "words")[0] == 0
    assert list(read_summary(tmp_path / "words").values()) != [with_prompt]


def test_a_training_recipe_is_judged_on_its_eval_tasks(
    command: Command, checkpoint: Path, beir: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for file in checkpoint.iterdir():
        (run / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "train.yaml"
    recipe = {"stage": "contrastive", "model_name_or_path": "m", "output_dir": str(run), "eval_tasks": [str(beir)]}
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert command("eval", path)[0] == 0
    assert ("following_lines", "ndcg_at_10") in read_summary(run / "mteb")


@pytest.fixture
def scifact(beir: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A task of mteb whose data are here."""
    local = choose_tasks([str(beir)], None)[0].task.dataset

    def load_data(self: Any, num_proc: int | None = None, **kwargs: Any) -> None:
        self.dataset, self.data_loaded = local, True

    monkeypatch.setattr(type(mteb.get_task("SciFact")), "load_data", load_data)
    return "SciFact"


def test_results_on_mtebs_tasks_are_what_the_leaderboard_reads(
    command: Command, checkpoint: Path, scifact: str, tmp_path: Path
) -> None:
    code, _, _ = command(
        "eval", checkpoint, "--tasks", scifact, "--names", "lab/embedder", "--output", tmp_path / "out"
    )
    assert code == 0
    revision = revisions.revision_of_checkpoint(checkpoint)
    folder = tmp_path / "out" / "results" / "lab__embedder" / revision
    assert {path.name for path in folder.iterdir()} >= {"SciFact.json", "model_meta.json"}
    meta = json.loads((folder / "model_meta.json").read_text(encoding="utf-8"))
    assert (meta["name"], meta["revision"]) == ("lab/embedder", revision)

    found = mteb.ResultCache(tmp_path / "out").load_results(models=["lab/embedder"], tasks=["SciFact"])
    (model,) = found.model_results
    (task,) = model.task_results
    assert task.get_score() == pytest.approx(read_summary(tmp_path / "out")[("SciFact", "ndcg_at_10")]["lab/embedder"])
    assert task.dataset_revision == mteb.get_task("SciFact").metadata.revision


def test_instructions_of_followir_move_documents(
    command: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task's own code compares the ranks under two instructions; here documents are the candidates' texts."""
    texts = {f"d{number}": line for number, line in enumerate(PROSE)}
    instructions = {"1-og": PROSE[2], "1-changed": PROSE[7]}
    split = {
        "corpus": Dataset.from_dict({"id": list(texts), "text": list(texts.values())}),
        "queries": Dataset.from_dict(
            {"id": list(instructions), "text": ["line"] * 2, "instruction": list(instructions.values())}
        ),
        "relevant_docs": {key: {"d1": 1, "d2": 1} for key in instructions},
        "top_ranked": {key: list(texts) for key in instructions},
    }
    (name,) = [name for name in SECOND_SCORES if name.startswith("Core17")]
    changed = [{"query-id": "1", "corpus-ids": ["d2"]}]
    monkeypatch.setattr(core17_instruction_retrieval, "load_dataset", lambda *args, **kwargs: changed)
    kind = type(mteb.get_task(name))

    def load_data(self: Any, num_proc: int | None = None, **kwargs: Any) -> None:
        self.dataset, self.data_loaded = {"default": {"test": split}}, True

    monkeypatch.setattr(kind, "load_data", load_data)
    code, _, said = command("eval", checkpoint, "--tasks", name, "--output", tmp_path / "out")
    assert (code, said.count("failed")) == (0, 0)

    encoder = Encoder(checkpoint, device="cpu")
    prompt = kind.abstask_prompt
    documents = encoder.encode(list(texts.values()))
    ranks = []
    for instruction in instructions.values():
        scores = documents @ encoder.encode(f"line {instruction}", prompt=prompt)
        ranks.append(int((scores > scores[2]).sum()) + 1)
    before, after = ranks
    expected = after / before - 1 if before >= after else 1 - before / after
    scores = read_summary(tmp_path / "out")
    (measured,) = scores[(name, "p-MRR")].values()
    assert measured == pytest.approx(expected, abs=1e-4)
    (second,) = scores[(name, "map_at_1000 (og)")].values()
    assert 0 < second <= 1


def judge_run_file(path: Path, judgements: Path) -> float:
    """nDCG@10 by trec_eval of a run file, in other hands: columns at white space."""
    ranked: dict[str, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        query, constant, document, rank, score, tag = line.split()
        assert constant == "Q0"
        assert tag == path.parent.name
        ranked.setdefault(query, {})[document] = float(score)
        assert int(rank) == len(ranked[query])
    relevant: dict[str, dict[str, int]] = {}
    for line in judgements.read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        relevant.setdefault(query, {})[document] = int(grade)
    judged = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut.10"}).evaluate(ranked)
    return sum(each["ndcg_cut_10"] for each in judged.values()) / len(judged)


def test_run_files_are_judged_alike_by_trec_eval(
    command: Command, checkpoint: Path, beir: Path, tmp_path: Path
) -> None:
    output, runs = tmp_path / "out", tmp_path / "runs"
    words = ["eval", checkpoint, "--tasks", beir, pairs_file(tmp_path), "--baseline", "bm25", "--output", output]
    assert command(*words)[0] == 0  # judged without run files, which is made up for
    assert command(*words, "--predictions", runs)[0] == 0
    scores = read_summary(output)[("following_lines", "ndcg_at_10")]
    name = revisions.name_of_folder(checkpoint)
    for label, folder in ((name, name.replace("/", "__")), ("bm25", "bm25")):
        measured = judge_run_file(runs / folder / "following_lines.trec", beir / "qrels" / "test.tsv")
        assert measured == pytest.approx(scores[label], abs=1e-5)
        assert measured > 0.05
    assert len(list(runs.rglob("*.trec"))) == 2  # pairs are not ranked


def test_run_files_are_not_written_twice(
    command: Command, checkpoint: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["eval", checkpoint, "--tasks", beir, "--output", tmp_path / "out", "--predictions", tmp_path / "runs"]
    assert command(*words)[0] == 0
    monkeypatch.setattr(models, "load_encoder", lambda *args: pytest.fail("the model is not needed"))
    assert command(*words)[0] == 0


def test_excluded_documents_of_bright_are_not_ranked(
    command: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mteb's task reads rows as BRIGHT publishes them; each query leaves out what it names."""
    documents = [{"id": f"page/{number}.txt", "content": line} for number, line in enumerate(PROSE)]
    excluded = {"0": ["page/0.txt", "page/3.txt"], "1": ["N/A"]}
    queries = [
        {"id": key, "query": PROSE[int(key)], "gold_ids": ["page/2.txt"], "excluded_ids": ids}
        for key, ids in excluded.items()
    ]
    rows = {"documents": documents, "examples": queries}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, **kwargs: Dataset.from_list(rows[name]))
    words = ["--tasks", "BrightBiologyRetrieval", "--baseline", "bm25", "--output", tmp_path / "out"]
    assert command("eval", checkpoint, *words, "--predictions", tmp_path, "--top-k", 4)[0] == 0
    folder = tmp_path / revisions.name_of_folder(checkpoint).replace("/", "__")
    ranked: dict[str, list[str]] = {}
    for line in (folder / "BrightBiologyRetrieval.trec").read_text(encoding="utf-8").splitlines():
        ranked.setdefault(line.split()[0], []).append(line.split()[2])
    assert {key: len(ids) for key, ids in ranked.items()} == {"0": 4, "1": 4}
    assert not set(ranked["0"]) & set(excluded["0"])
    without_prompt = ["--no-default-prompts", "--output", tmp_path / "plain", "--predictions", tmp_path / "plain"]
    assert command("eval", checkpoint, *words[:2], *without_prompt)[0] == 0
    plain = tmp_path / "plain" / folder.name / "BrightBiologyRetrieval.trec"
    assert plain.read_text(encoding="utf-8").split()[2] not in excluded["0"]
    (line,) = [line for line in plain.read_text(encoding="utf-8").splitlines() if line.startswith("1 Q0 page/1.txt ")]
    assert line.split()[3] == "1"  # the query is that very line


def test_answers_are_kept_in_run_files_too(command: Command, tmp_path: Path, checkpoint: Path) -> None:
    passages = [{"_id": f"p{number}", "text": line} for number, line in enumerate(PROSE)]
    write_lines(tmp_path / "questions" / "corpus.jsonl", passages)
    question = {"_id": "q", "text": PROSE[4], "answers": [PROSE[4].split()[0]]}
    write_lines(tmp_path / "questions" / "queries.jsonl", [question])
    words = ["--tasks", tmp_path / "questions", "--output", tmp_path / "out", "--predictions", tmp_path / "runs"]
    assert command("eval", checkpoint, *words, "--baseline", "bm25")[0] == 0
    lines = (tmp_path / "runs" / "bm25" / "questions.trec").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("q Q0 p4 1 ")
    scores = read_summary(tmp_path / "out")
    assert (
        scores[("questions", "accuracy_at_100")]["bm25"] == scores[("questions", "dpr_accuracy_at_100")]["bm25"] == 1
    )


def test_lines_of_a_run_file() -> None:
    ranked = {"q 1": {"a": 0.5, "b c": 0.75, "d": 0.5}, "a": {"a": 1.0, "b": -1e-7}}
    assert list(run_lines(ranked, "me", drop_identical_ids=True)) == [
        "q%201 Q0 b%20c 1 0.75 me\n",
        "q%201 Q0 d 2 0.5 me\n",
        "q%201 Q0 a 3 0.5 me\n",
        "a Q0 b 1 -1e-07 me\n",
    ]


def test_prompts_that_were_not_trained_are_one_warning(
    command: Command, checkpoint: Path, beir: Path, scifact: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["eval", checkpoint, "--tasks", beir, scifact, "--dimensions", 8, 16, "--output", tmp_path / "out"]
    template = "{instruction}; {text}"
    assert command(*words, "--prompts", "query=Find the line.", "--query-template", template)[0] == 0
    (said,) = [record.getMessage() for record in caplog.records if "was trained with" in record.getMessage()]
    assert "reads the texts of following_lines as 'Find the line.; text', but was trained with " in said
    assert "(2 tasks have" in said
    assert "'.;' is where" in said
    caplog.clear()
    assert command(*words, "--prompts", "query=@next_line")[0] == 0
    assert not [record for record in caplog.records if "was trained with" in record.getMessage()]


def test_one_model_is_in_memory_at_a_time(
    command: Command, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes next: a checkpoint, another one of the same run, a baseline. The sizes of one share a model."""
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for seed, folder in enumerate(folders):
        save_checkpoint(make_embedder(seed=seed, matryoshka_dims=[8]), folder)
        tiny_tokenizer().save_pretrained(folder)
    encoders: list[weakref.ref[Any]] = []
    alive: list[tuple[str, int]] = []

    def count(name: str) -> None:
        alive.append((name, sum(each() is not None for each in encoders)))

    load_encoder, lexical_search = models.load_encoder, lexical.LexicalSearch

    def load_and_count(source: Any, options: Any) -> Any:
        count(Path(source.name).name)
        encoder = load_encoder(source, options)
        encoders.extend([weakref.ref(encoder), weakref.ref(encoder.model)])
        return encoder

    def search_and_count(kind: str) -> Any:
        count(kind)
        return lexical_search(kind)

    monkeypatch.setattr(models, "load_encoder", load_and_count)
    monkeypatch.setattr(lexical, "LexicalSearch", search_and_count)
    words = ["eval", *folders[:2], "--tasks", beir, "--baseline", "bm25", folders[2], "--dimensions", 8, 32]
    code, shown, _ = command(*words, "--output", tmp_path / "out", "--devices", "cpu")
    assert (code, shown.count("following_lines")) == (0, 1)
    assert alive == [("first", 0), ("second", 0), ("bm25", 0), ("third", 0)]
    gc.collect()
    count("afterwards")
    assert alive[-1] == ("afterwards", 0)


def test_a_task_whose_data_cannot_be_loaded_does_not_stop_the_others(
    command: Command, checkpoint: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_data(self: Any, **kwargs: Any) -> None:
        raise ConnectionError("no\nhub")

    monkeypatch.setattr(type(mteb.get_task("NFCorpus")), "load_data", load_data)
    code, shown, said = command("eval", checkpoint, "--tasks", "NFCorpus", beir, "--output", tmp_path / "out")
    assert code == 1
    assert "following_lines" in shown
    assert f"failed: {revisions.name_of_folder(checkpoint)} on NFCorpus: no hub" in said
    assert "ConnectionError" in (tmp_path / "out" / "failures.log").read_text(encoding="utf-8")


REFUSED = [
    (["nowhere", "--tasks", "BEIR"], "There is no folder nowhere to evaluate"),
    (["CHECKPOINT/..", "--tasks", "BEIR"], "is not a checkpoint of an embedder"),
    (["CHECKPOINT", "--tasks", "SciFatc"], "did you mean `SciFact`?"),
    (["CHECKPOINT", "--tasks", "pooling-atention"], "did you mean `pooling-attention`?"),
    (["CHECKPOINT"], "`tasks` is empty"),
    (
        ["CHECKPOINT", "--tasks", "SciFact", "--query-template", "{instruction}"],
        "`query_template` must contain {text}",
    ),
    (
        ["CHECKPOINT", "--tasks", "SciFact", "--long-documents", "chunk", "--text-max-length", "9"],
        "set only one of them",
    ),
    (["--tasks", "beir"], "`checkpoints` is empty"),
    (["CHECKPOINT", "--tasks", "SciFact", "--dimensions", "9"], "`dimensions: 9` was not trained"),
    (["CHECKPOINT", "--tasks", "SciFact", "--baseline", "bm52"], "did you mean `bm25`?"),
    (["CHECKPOINT", "--tasks", "SciFact", "--prompts", "query=@next_lin"], "did you mean `next_line`?"),
    (["CHECKPOINT", "--tasks", "SciFact", "--prompts", "queri=x"], "did you mean `query`?"),
    (["CHECKPOINT", "--tasks", "SciFact", "--prompts", "query"], "neither KEY=TEXT nor a JSON file"),
    (["CHECKPOINT", "--tasks", "SciFact", "--names", "mine"], "must be organization/model"),
    (["CHECKPOINT", "--tasks", "SciFact", "--names", "a/b", "c/d"], "2 names for 1 checkpoints"),
    (["CHECKPOINT", "CHECKPOINT", "--tasks", "SciFact"], "Two models would both be called"),
    (["CHECKPOINT", "--tasks", "SciFact", "--languages", "deu"], "is a language of none of the tasks"),
    (["CHECKPOINT", "x.yaml", "--tasks", "SciFact"], "x.yaml is a recipe"),
    (["x.yaml"], "There is no recipe x.yaml"),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_bad_input_gets_one_sentence(
    words: list[str],
    sentence: str,
    command: Command,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load_encoder", lambda *args: pytest.fail("the model was loaded before the check"))
    code, shown, said = command("eval", *(word.replace("CHECKPOINT", str(checkpoint)) for word in words))
    assert (code, shown) == (1, "")
    assert sentence in said
    assert said.startswith("llamafactory-embed: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("taks: [SciFact]", "unknown option `taks`; did you mean `tasks`?"),
        (
            "tasks: [SciFact]\ncheckpoints: [x]\nlong_documents: chop",
            "`long_documents` must be one of",
        ),
        ("tasks: [SciFact]\ncheckpoints: [x]\nprompts: query", "`prompts` must map keys to texts"),
        ("a: [", "is not valid YAML"),
        ("- a", "must map options to values"),
    ],
)
def test_bad_recipes_get_one_sentence(text: str, sentence: str, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text(text, encoding="utf-8")
    code, _, said = command("eval", path)
    assert code == 1
    assert sentence in said


def test_an_adapter_without_its_base_is_reported(command: Command, beir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_checkpoint(make_embedder(lora_dropout=0.0, base_model=str(tmp_path / "gone")), folder)
    tiny_tokenizer().save_pretrained(folder)
    code, _, said = command("eval", folder, "--tasks", beir, "--output", tmp_path / "out")
    assert code == 1
    assert f"belongs to {tmp_path / 'gone'}, which cannot be loaded" in said


@pytest.mark.parametrize("name", GROUPS)
def test_every_group_is_made_of_tasks_that_mteb_has(name: str) -> None:
    chosen = choose_tasks([name], None)
    assert {task.group for task in chosen} == {name}
    group = GROUPS[name]
    if group.benchmark is None:
        assert [task.name for task in chosen] == list(group.tasks)
    else:
        assert [task.name for task in chosen] == [each.metadata.name for each in mteb.get_benchmark(group.benchmark)]


def test_a_mean_of_several_tasks_is_retrieval_if_all_of_them_are() -> None:
    chosen = {task.name: task for task in choose_tasks(["CQADupstackRetrieval", "STS12", "SciFact"], None)}
    assert {name: task.is_retrieval for name, task in chosen.items()} == {
        "CQADupstackRetrieval": True, "STS12": False, "SciFact": True
    }  # fmt: skip
    assert len(chosen["CQADupstackRetrieval"].parts) == 12


def test_msmarco_is_judged_on_its_dev_split_and_miracl_in_the_languages_asked_for() -> None:
    (chosen,) = [task for task in choose_tasks(["pooling-attention-retrieval"], None) if task.name == "MSMARCO"]
    assert chosen.task.eval_splits == ["dev"]
    (chosen,) = choose_tasks(["miracl"], None, ["deu", "fra"])
    assert sorted(chosen.task.hf_subsets) == ["de", "fr"]
