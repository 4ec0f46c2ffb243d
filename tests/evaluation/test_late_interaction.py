"""A checkpoint of several vectors a text, judged on local data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mteb
import pytest
from mteb.models import SearchProtocol

from llamafactory_embed.encoder.encoder import Encoder
from llamafactory_embed.evaluation.late_interaction import SetSearch
from llamafactory_embed.evaluation.local import load_path
from llamafactory_embed.evaluation.models import list_models, wrap_encoder
from llamafactory_embed.evaluation.options import EvaluationOptions
from llamafactory_embed.loading.checkpoint import save_checkpoint
from tests.embedders import PROSE, make_embedder
from tests.evaluation.conftest import INSTRUCTIONS
from tests.tiny_models import tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("runs") / "colbert"
    save_checkpoint(make_embedder(multi_vector=True, instructions=INSTRUCTIONS), target)
    tiny_tokenizer().save_pretrained(target)
    return target


def open_search(folder: Path, **options: Any) -> Any:
    chosen = EvaluationOptions(checkpoints=[str(folder)], tasks=["x"], **options)
    return wrap_encoder(
        Encoder(folder, device="cpu"), "runs/colbert", "r", None, {}, chosen, frozenset({"following_lines"})
    )


def test_the_ranking_is_that_of_max_sim(folder: Path, beir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of mteb's whole run, and of candidates."""
    model = open_search(folder)
    assert isinstance(model, SetSearch)
    assert isinstance(model, SearchProtocol)
    seen: dict[str, dict[str, float]] = {}
    search = SetSearch.search

    def watched(self: SetSearch, queries: Any, **kwargs: Any) -> dict[str, dict[str, float]]:
        seen.update(search(self, queries, **kwargs))
        candidates = {name: ["d2", "d0"] for name in queries["id"]}
        for found in search(self, queries, **(kwargs | {"top_ranked": candidates})).values():
            assert set(found) == {"d0", "d2"}
        return seen

    monkeypatch.setattr(SetSearch, "search", watched)
    result = mteb.evaluate(model, load_path(str(beir)).task, cache=None, co2_tracker=False, show_progress_bar=False)
    assert 0 < result.task_results[0].get_score() < 1
    encoder = Encoder(folder, device="cpu")
    queries = encoder.encode_queries([line[:40].strip() for line in PROSE])  # as mteb reads them
    expected = encoder.similarity(queries, encoder.encode_documents(PROSE))
    for name, found in seen.items():
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert set(found) == {f"d{place}" for place in range(len(PROSE))}
        for document, similarity in found.items():
            assert similarity == pytest.approx(expected[int(name[1:]), int(document[1:])], abs=1e-5)
    assert len(seen) == len(PROSE) - 2


@pytest.mark.parametrize("options", [{"precisions": ["int8"]}, {"index": "IVF4,Flat"}, {"long_documents": "chunk"}])
def test_what_is_built_for_one_vector_is_refused(options: dict[str, Any], folder: Path) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` is built for one vector a text"):
        list_models(EvaluationOptions(checkpoints=[str(folder)], tasks=["x"], **options), [])
