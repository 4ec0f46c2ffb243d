"""A checkpoint of several vectors a text, as a MultiVectorEncoder of sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder

from llamafactory_embed.data.tokenization import TokenizedText
from llamafactory_embed.encoder.encoder import Encoder
from llamafactory_embed.export import multi_vector
from llamafactory_embed.export.export import export_checkpoint
from llamafactory_embed.export.llm2vec import check_fits
from llamafactory_embed.export.options import ExportOptions
from llamafactory_embed.export.serving import plan_serving
from llamafactory_embed.model.packed import pack_texts
from tests.embedders import INSTRUCTION, PROSE, make_config
from tests.export.checkpoints import Trained, train


def vectors_of(trained: Trained, text: TokenizedText, cut: int) -> np.ndarray:
    """One text alone, by the model in memory."""
    with torch.no_grad():
        vectors = trained.model(pack_texts([text.token_ids]))
    return torch.nn.functional.normalize(vectors[:, :cut], dim=-1).numpy()


@pytest.mark.parametrize("options", [{}, {"dense_sizes": [12, 8], "matryoshka_dims": [4, 8]}], ids=["states", "cut"])
def test_sentence_transformers_has_the_vectors_and_max_sim_of_training(
    options: dict[str, Any], tmp_path: Path
) -> None:
    trained = train(tmp_path, multi_vector=True, **options)
    cut = 4 if options else trained.model.dimension
    exported = export_checkpoint(
        trained.folder, tmp_path / "out", ExportOptions(query_task="next_line", dimensions=cut if options else None)
    )
    assert exported.agreement.alone <= 1e-5
    loaded = MultiVectorEncoder(str(tmp_path / "out"), device="cpu")
    found = [loaded.encode_query(PROSE[:3]), loaded.encode_document(PROSE[3:6])]
    tokens = [trained.tokenizer.queries(PROSE[:3], INSTRUCTION), trained.tokenizer.documents(PROSE[3:6])]
    expected = [[vectors_of(trained, text, cut) for text in side] for side in tokens]
    for side, own in zip(found, expected, strict=True):
        for left, right in zip(side, own, strict=True):
            np.testing.assert_allclose(left.numpy(), right, atol=2e-5)
    by_hand = [[(query @ document.T).max(axis=1).mean() for document in expected[1]] for query in expected[0]]
    np.testing.assert_allclose(loaded.similarity(*found).numpy(), by_hand, atol=2e-5)
    served = Encoder(tmp_path / "out", device="cpu")
    sides = served.encode(PROSE[:3], task="next_line"), served.encode(PROSE[3:6])
    if not options:
        np.testing.assert_allclose(served.similarity(*sides), by_hand, atol=2e-5)
    assert "MultiVectorEncoder(" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_another_max_sim_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum instead of the mean."""
    trained = train(tmp_path, multi_vector=True)
    monkeypatch.setattr(multi_vector.Encoder, "similarity", lambda self, a, b: np.zeros((len(a), len(b))))
    with pytest.raises(ValueError, match="MaxSim of sentence-transformers embeds"):
        export_checkpoint(trained.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_has_no_place_is_refused() -> None:
    with pytest.raises(ValueError, match="keeps the vectors of a prompt"):
        plan_serving(make_config(multi_vector=True, skip_instruction=True), 32)
    with pytest.raises(ValueError, match="appends no mask tokens"):
        plan_serving(make_config(multi_vector=True, pooling="mask"), 32)
    with pytest.raises(ValueError, match="`--layout llm2vec` needs one vector a text"):
        check_fits(make_config(multi_vector=True), None)  # type: ignore[arg-type]
