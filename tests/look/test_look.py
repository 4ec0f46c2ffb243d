"""What the Board's tab Embeddings computes: two models on the same texts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llamafactory_embed.data.retrieval.evalset import RetrievalEval
from llamafactory_embed.evaluation.in_training import evaluate_retrieval
from llamafactory_embed.loading.checkpoint import save_checkpoint
from llamafactory_embed.look import tab
from llamafactory_embed.look.comparison import EmbeddedTask, RankedText, look_at, principal_components
from llamafactory_embed.look.material import cut_task, read_pasted_lines, retrieval_sets, typed_task
from llamafactory_embed.look.models import newest_checkpoint, open_base, open_trained, runs_below
from llamafactory_embed.look.pictures import draw_map, draw_similarities, short
from llamafactory_embed.look.tables import GOLD, metrics_table, side_by_side
from tests.embedders import INSTRUCTION, PROSE, make_embedder
from tests.tiny_models import save_tiny_model, tiny_tokenizer


TASK = RetrievalEval(
    task="next_line",
    queries=tuple(PROSE[:4]),
    query_instructions=(INSTRUCTION,) * 4,
    corpus=tuple(PROSE[:6]),
    corpus_instruction="",
    relevant=tuple(frozenset({place + 1}) for place in range(4)),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base model, and the checkpoint of an adapter on it."""
    folder = tmp_path_factory.mktemp("look")
    base = save_tiny_model(folder / "base")
    save_embedder(folder / "run", lora_dropout=0.0, base_model=str(base), normalize_embeddings=False)
    return base, folder / "run"


def save_embedder(folder: Path, **options: Any) -> Path:
    save_checkpoint(make_embedder(**options), folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


# Models


def test_the_newest_complete_checkpoint_of_a_run_is_found(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="no run has saved one there: wait for the first"):
        newest_checkpoint(run)
    for number, step in enumerate((2, 10, 12)):
        folder = run / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "embedding_config.json").touch()
        os.utime(folder / "embedding_config.json", (1000 + number, 1000 + number))
        if step != 12:  # which is being written
            (folder / "trainer_state.json").touch()
    assert newest_checkpoint(run) == run / "checkpoint-10"
    assert runs_below(tmp_path) == [str(run)]
    (run / "embedding_config.json").touch()  # the run is over
    assert newest_checkpoint(run) == run
    (run / "checkpoint-12" / "trainer_state.json").touch()  # another run began in the same folder
    os.utime(run / "checkpoint-12" / "embedding_config.json")
    os.utime(run / "embedding_config.json", (1001, 1001))
    assert newest_checkpoint(run) == run / "checkpoint-12"


def test_the_base_is_the_trained_model_without_its_training(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, run = folders
    trained = open_trained(run, "cpu")
    before = open_base("", trained, "cpu")
    untrained = save_embedder(tmp_path / "untrained", normalize_embeddings=False)  # the same seed as the base
    expected = open_trained(untrained, "cpu").encode(PROSE, prompt=INSTRUCTION)
    np.testing.assert_allclose(before.encode(PROSE, prompt=INSTRUCTION), expected, atol=1e-5)
    assert not np.allclose(trained.encode(PROSE, prompt=INSTRUCTION), expected, atol=1e-2)
    assert open_base(str(base), trained, "cpu") is open_base(str(base), trained, "cpu")  # stays in memory
    assert open_base(str(untrained), trained, "cpu") is open_trained(untrained, "cpu")
    with pytest.raises(ValueError, match="does not say where it came from: name the base model"):
        open_base("", open_trained(untrained, "cpu"), "cpu")


# Texts


def test_typed_texts_become_a_task() -> None:
    task = typed_task("who?\tme\n\nwhat? \r\nwho?\t you\n", "you\nit", "Answer")
    assert task is not None
    assert (task.queries, task.corpus, task.query_instructions) == (
        ("who?", "what?"),
        ("you", "it", "me"),
        ("Answer",) * 2,
    )
    assert task.relevant == (frozenset({2, 0}), frozenset())
    assert typed_task(" \n", "", "") is None
    with pytest.raises(ValueError, match="at least one query and one document"):
        typed_task("who?", "", "")


def test_a_cut_task_keeps_its_answers() -> None:
    cut = cut_task(TASK, 2, 4)
    assert cut.corpus == TASK.corpus[:4]
    assert cut_task(TASK, 4, 1).corpus == TASK.corpus[1:5]  # the answers alone are more than asked for
    for query, places in enumerate(cut.relevant):
        assert {cut.corpus[place] for place in places} == {TASK.corpus[place] for place in TASK.relevant[query]}


def test_files_and_data_sets(tmp_path: Path) -> None:
    assert retrieval_sets(tmp_path) == []
    entries = {"a": {"formatting": "retrieval"}, "b": {"file_name": "b.json"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries), "utf-8")
    assert retrieval_sets(tmp_path) == ["a"]
    (tmp_path / "a.txt").write_bytes("\ufeffé\nb\n".encode())
    assert read_pasted_lines(tmp_path / "a.txt") == "é\nb"
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a\.txt is no text file in UTF-8"):
        read_pasted_lines(tmp_path / "a.txt")


# Numbers


def test_the_metrics_are_those_of_the_training(folders: tuple[Path, Path]) -> None:
    encoder = open_trained(folders[1], "cpu")
    (embedded,) = look_at("run", encoder, [TASK]).tasks
    assert embedded.metrics() == pytest.approx(evaluate_retrieval(encoder, [TASK], share_over_ranks=False))
    unjudged = EmbeddedTask(cut_task(TASK, 1, 2), embedded.queries[:1], embedded.documents[:2])
    assert {**unjudged.metrics()}["recall@100"] == 1
    nothing = typed_task("a", "b", "")
    assert nothing is not None
    assert look_at("run", encoder, [nothing]).tasks[0].metrics() == {}


def test_rankings_and_neighbours_have_the_scores_of_the_model(folders: tuple[Path, Path]) -> None:
    encoder = open_trained(folders[1], "cpu")
    side = look_at("run", encoder, [TASK])
    query = encoder.encode(TASK.queries[1], prompt=INSTRUCTION, normalize=True)
    scores = encoder.encode(list(TASK.corpus), normalize=True) @ query
    ranking = side.tasks[0].ranking(1, 4)
    assert [each.text for each in ranking] == [TASK.corpus[place] for place in np.argsort(-scores)[:4]]
    assert [each.score for each in ranking] == pytest.approx(sorted(scores, reverse=True)[:4], abs=1e-5)
    assert {each.text for each in side.tasks[0].ranking(1, 6) if each.is_answer} == {TASK.corpus[2]}

    known = side.neighbours(TASK.corpus[5], 100)  # the text is a document, and no neighbour of itself
    assert {each.text for each in known} == {*TASK.queries, *TASK.corpus} - {TASK.corpus[5]}
    assert side.neighbours("other", 3)[0].score >= side.neighbours("other", 3)[1].score


def test_a_map_keeps_the_distances_of_what_is_flat() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(9, 2, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1.0])
    turned, _ = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64))
    places = principal_components(torch.nn.functional.pad(flat, (0, 5)) @ turned + 4)
    torch.testing.assert_close(torch.cdist(places, places), torch.cdist(flat, flat))
    assert places[:, 0].var() > places[:, 1].var()
    again = principal_components(torch.nn.functional.pad(flat, (0, 5)) @ turned)
    torch.testing.assert_close(places, again)
    assert principal_components(torch.ones(1, 7)).tolist() == [[0.0, 0.0]]


# What is shown


def test_tables_show_texts_as_they_are() -> None:
    html = side_by_side({"a<b": [RankedText("<script>", 0.5, True), RankedText("x & y", -1, False)], "c": []}, "none")
    assert all(text in html for text in ("&lt;script&gt;", "x &amp; y", "a&lt;b", "none"))
    assert (html.count(GOLD), html.count('class="ranked"'), html.count("0.500"), html.count("-1.000")) == (1, 2, 1, 1)
    judged = metrics_table(
        {"t": {"before": {"ndcg@10": 0.25}, "after": {"ndcg@10": 0.5}}, "u": {"before": {}, "after": {}}}
    )
    assert judged.count('class="judged"') == 2
    assert judged.count("font-weight:600") == judged.count('font-weight:600;">50.0') == 1


def test_pictures_show_every_text(folders: tuple[Path, Path]) -> None:
    encoder = open_trained(folders[1], "cpu")
    sides = [look_at(name, encoder, [TASK, cut_task(TASK, 2, 3)]) for name in ("before", "after")]
    points = [collection.get_offsets() for collection in draw_map(sides, "PCA", ("q", "d")).axes[0].collections]
    assert [len(each) for each in points] == [6, 4, 3, 2]
    heat = draw_similarities(sides, 0)
    assert heat.axes[0].images[0].get_array().shape == (4, 4)
    assert [label.get_text() for label in heat.axes[0].get_xticklabels()] == [
        short(PROSE[line]) for line in range(1, 5)
    ]
    assert short("a $5 bill") == r"a \$5 bill"


def test_the_tab_compares(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, run = folders
    page = SimpleNamespace(run_folder=lambda *parts: str(run.parent.joinpath(*parts)))

    def compare(trained: str, queries: str = "one\ttwo", output: str = "run") -> tab.Looked:
        return tab.look_at_choices(
            page.run_folder, "", trained, "cpu", [], 50, 500, queries, "three", "", str(base), str(tmp_path), output
        )

    looked = compare("")
    assert [side.name for side in looked.sides] == [str(base), str(run)]
    assert looked.questions() == [("one", "0/0")]
    assert tab.show_rankings(looked, "0/0", "zh").count('class="ranked"') == 4
    assert tab.show_metrics(looked).count('class="judged"') == 2
    assert tab.show_nearest(looked, "two", "en").count('class="ranked"') == 4
    with pytest.raises(ValueError, match="nothing to look at"):
        tab.look_at_choices(page.run_folder, "", "", "cpu", [], 1, 1, "", "", "", "", "", "run")
    with pytest.raises(ValueError, match="is no checkpoint of an embedder"):
        compare("", output="other")
