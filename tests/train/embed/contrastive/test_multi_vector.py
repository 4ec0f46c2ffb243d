"""Texts of several vectors: what the model keeps, MaxSim, the loss, GradCache, ranks, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llamafactory_embed.data.retrieval.evalset import RetrievalEval
from llamafactory_embed.encoder.encoder import Encoder
from llamafactory_embed.evaluation.in_training import evaluate_retrieval
from llamafactory_embed.hparams.contrastive import ContrastiveOptions
from llamafactory_embed.loading.checkpoint import save_checkpoint
from llamafactory_embed.model import vector_sets
from llamafactory_embed.model.embedding import EmbeddingModel
from llamafactory_embed.model.packed import forward_packed, pack_texts
from llamafactory_embed.model.vector_sets import VectorSets, max_sim
from llamafactory_embed.train.embed.contrastive.batch import ContrastiveBatch, ContrastiveCollator
from llamafactory_embed.train.embed.contrastive.objective import ContrastiveObjective
from llamafactory_embed.train.embed.gather import gather_sets
from llamafactory_embed.train.embed.grad_cache import cached_backward
from tests.embedders import PROSE, make_embedder, make_examples, make_tokenizer
from tests.ranks import Ranks
from tests.tiny_models import tiny_tokenizer


KINDS: dict[str, dict[str, Any]] = {
    "colbert": {"dense_sizes": [6], "dense_bias": False, "skip_instruction": True},
    "mask": {"pooling": "mask", "mask_tokens": 3, "mask_token": "</s>"},
}


def make_model(kind: str, **more: Any) -> EmbeddingModel:
    return make_embedder("llama", multi_vector=True, **KINDS[kind], **more)


def collate(model: EmbeddingModel, rows: int = 5, negatives: int = 1, max_tokens: int = 60) -> ContrastiveBatch:
    return ContrastiveCollator(make_tokenizer(model), max_tokens)(make_examples(rows, negatives, scores=True))["batch"]


def padded_max_sim(queries: list[Tensor], documents: list[Tensor]) -> Tensor:
    """As textbooks have it: padding, a mask, and a table of all pairs of tokens."""
    units = [[F.normalize(each, dim=-1) for each in side] for side in (queries, documents)]
    left, right = (torch.nn.utils.rnn.pad_sequence(side, batch_first=True) for side in units)
    products = torch.einsum("qie,dje->qdij", left, right)
    there = torch.tensor([[j < len(each) for j in range(right.shape[1])] for each in documents])
    best = products.masked_fill(~there[None, :, None, :], -torch.inf).amax(dim=-1)  # [Q, D, i]
    counted = torch.tensor([[i < len(each) for i in range(left.shape[1])] for each in queries])
    return (best * counted[:, None]).sum(dim=-1) / counted.sum(dim=-1)[:, None]


def random_sets(counts: list[int], seed: int) -> VectorSets:
    generator = torch.Generator().manual_seed(seed)
    return VectorSets.of([F.normalize(torch.randn(count, 8, generator=generator), dim=-1) for count in counts])


def test_max_sim_is_the_padded_one_whatever_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, documents = random_sets([1, 5, 3], 0), random_sets([4, 1, 1, 7, 2], 1)
    expected = padded_max_sim(list(queries.texts()), list(documents.texts()))
    torch.testing.assert_close(max_sim(queries, documents), expected)
    monkeypatch.setattr(vector_sets, "MOST_PRODUCTS", 20)
    assert len(documents.portions(20 // 9)) > 3
    torch.testing.assert_close(max_sim(queries, documents), expected)


def test_max_sim_is_that_of_sentence_transformers() -> None:
    similarity = pytest.importorskip("sentence_transformers.util.similarity")
    queries, documents = random_sets([1, 5, 3], 0), random_sets([4, 1, 1, 7, 2], 1)
    expected = similarity.mean_maxsim(list(queries.texts()), list(documents.texts()))
    torch.testing.assert_close(max_sim(queries, documents), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_is_the_state_of_a_token_that_counts(kind: str) -> None:
    """Text by text, from the states themselves; a text of which truncation has left the prompt keeps all of it."""
    model = make_model(kind)
    batch = collate(model)
    texts = batch.texts.split([1] * len(batch.texts.lengths))
    assert batch.vectors_each is not None
    with torch.no_grad():
        found = VectorSets(model(batch.packed), batch.vectors_each).texts()
        for place, text in zip(batch.texts.text_indices, texts, strict=True):
            (states,) = forward_packed(model.decoder, text)
            assert text.pooled_tokens is not None
            kept = states[text.pooled_tokens] if text.pooled_tokens.any() else states
            torch.testing.assert_close(found[place], model.dense(kept), atol=1e-5, rtol=1e-5)
    if kind == "mask":
        assert set(batch.vectors_each) == {3}
    else:
        assert len(set(batch.vectors_each)) > 3
        assert found[0].shape[1] == 6


def test_a_text_none_of_whose_tokens_counts_keeps_them_all() -> None:
    model = make_model("colbert")
    (batch,) = pack_texts([[5, 6, 7], [5, 6]], None, [3, 1])
    with torch.no_grad():
        assert model([batch]).shape == (4, 6)
    assert vector_sets.vectors_of_texts([batch]) == (3, 1)


LOSSES: dict[str, dict[str, Any]] = {
    "info_nce": {},
    "tiles": {"candidate_tile": 2, "false_negative_margin": 0.1, "focal_gamma": 0.5},
    "matryoshka": {"matryoshka_dims": [6, 3]},
    "kl_distillation": {"contrastive_loss": "kl_distillation"},
    "margin_distillation": {"contrastive_loss": "margin_distillation"},
    "with_a_teacher": {"kl_weight": 0.5},
}


def test_the_losses_are_those_of_the_padded_similarities() -> None:
    model = make_model("colbert")
    batch = collate(model, rows=4, negatives=2)
    with torch.no_grad():
        vectors = model(batch.packed)
    assert batch.vectors_each is not None
    texts = list(VectorSets(vectors, batch.vectors_each).texts())

    def expected(cut: int) -> tuple[Tensor, Tensor, Tensor]:
        cuts = [each[:, :cut] for each in texts]
        queries, positives, negatives = cuts[:4], cuts[4:8], cuts[8:]
        own = [[positives[row], *negatives[2 * row : 2 * row + 2]] for row in range(4)]
        similarities = padded_max_sim(queries, [each for row in own for each in row])  # [4, 12]
        mine = torch.stack([similarities[row, 3 * row : 3 * row + 3] for row in range(4)])
        assert batch.scores is not None
        teacher = batch.scores.softmax(dim=1)
        divergence = (teacher * (teacher.log() - (mine / 0.05).log_softmax(dim=1))).sum(dim=1).mean()
        margins = (mine[:, :1] - mine[:, 1:]) - (batch.scores[:, :1] - batch.scores[:, 1:])
        return F.cross_entropy(similarities / 0.05, torch.arange(0, 12, 3)), divergence, margins.square().mean()

    def found(**options: Any) -> Tensor:
        return ContrastiveObjective(ContrastiveOptions(multi_vector=True, num_negatives=2, **options))(vectors, batch)

    close = {"atol": 1e-5, "rtol": 1e-5}
    ranking, divergence, margins = expected(6)
    torch.testing.assert_close(found(), ranking, **close)
    torch.testing.assert_close(found(candidate_tile=3), ranking, **close)
    torch.testing.assert_close(found(matryoshka_dims=[6, 3]), ranking + expected(3)[0], **close)
    torch.testing.assert_close(found(contrastive_loss="kl_distillation"), divergence, **close)
    torch.testing.assert_close(found(contrastive_loss="margin_distillation"), margins, **close)
    torch.testing.assert_close(found(kl_weight=0.5), ranking + 0.5 * divergence, **close)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["tiles", "with_a_teacher"])
def test_cached_gradients_equal_plain_ones(kind: str, loss: str) -> None:
    model = make_model(kind, lora_dropout=0.3).train()
    objective = ContrastiveObjective(ContrastiveOptions(multi_vector=True, **LOSSES[loss]))
    batch = collate(model, rows=6)
    assert len(batch.packed) > 3

    def gradients() -> dict[str, Tensor]:
        found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
        model.zero_grad()
        return found

    torch.manual_seed(0)
    plain = objective(model(batch.packed), batch)
    plain.backward()
    expected = gradients()
    torch.manual_seed(0)
    cached = cached_backward(
        model, batch.packed, lambda each: objective(each, batch), torch.Tensor.backward,
        device=model.device, vectors_each=batch.vectors_each,
    )  # fmt: skip
    torch.testing.assert_close(cached, plain.detach(), atol=1e-6, rtol=1e-5)
    found = gradients()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_two_ranks_with_other_numbers_of_vectors_are_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of the ranks' losses, and the gradient of each vector, which DDP halves."""
    model = make_model("colbert")
    examples, collator = make_examples(6, 1), ContrastiveCollator(make_tokenizer(model), 1000)
    options = ContrastiveOptions(multi_vector=True, candidate_tile=2)
    parts = [collator(examples[:3])["batch"], collator(examples[3:])["batch"]]
    with torch.no_grad():
        vectors = [model(part.packed) for part in parts]
    assert len(vectors[0]) != len(vectors[1])

    ranks = Ranks(2, monkeypatch)

    def step(rank: int) -> tuple[Tensor, Tensor]:
        own = vectors[rank].to(torch.device("cpu")).requires_grad_()
        loss = ContrastiveObjective(options)(own, parts[rank])
        return loss.detach(), torch.autograd.grad(loss, own)[0] / 2

    losses, gradients = zip(*ranks.run(step), strict=True)
    sets = [VectorSets(each, part.vectors_each).texts() for each, part in zip(vectors, parts, strict=True)]
    order = [(0, 0, 3), (1, 0, 3), (0, 3, 6), (1, 3, 6), (0, 6, 9), (1, 6, 9)]  # queries, positives, negatives
    whole = collator(examples)["batch"]
    joined = torch.cat([text for rank, first, end in order for text in sets[rank][first:end]]).requires_grad_()
    loss = ContrastiveObjective(options)(joined, whole)
    torch.testing.assert_close(torch.stack(losses).mean().as_subclass(Tensor), loss.detach())
    (expected,) = torch.autograd.grad(loss, joined)
    by_rank = [VectorSets(each, part.vectors_each).texts() for each, part in zip(gradients, parts, strict=True)]
    found = torch.cat([text for rank, first, end in order for text in by_rank[rank][first:end]])
    torch.testing.assert_close(found.as_subclass(Tensor), expected, atol=1e-6, rtol=1e-4)


def test_sets_of_all_ranks_come_in_rank_order(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [random_sets([2, 5], 0), random_sets([3, 1], 1)]
    for found in Ranks(2, monkeypatch).run(
        lambda rank: gather_sets(VectorSets(own[rank].vectors.to(torch.device("cpu")), own[rank].counts))
    ):
        assert found.counts == (2, 5, 3, 1)
        assert torch.equal(found.vectors.as_subclass(Tensor), torch.cat([each.vectors for each in own]))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_served(kind: str, tmp_path: Path) -> None:
    model, tokenizer = make_model(kind), tiny_tokenizer()
    save_checkpoint(model, tmp_path)
    tokenizer.save_pretrained(tmp_path)
    in_memory, served = Encoder(model, tokenizer), Encoder(tmp_path, device="cpu")
    expected, found = in_memory.encode(PROSE[:4]), served.encode(PROSE[:4])
    for left, right, text in zip(found, expected, PROSE, strict=False):
        np.testing.assert_allclose(left, right, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(left, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(served.encode(text), right, atol=1e-5)
    queries = served.encode(PROSE[4:6], prompt="Find it")
    similarities = served.similarity(queries, found)
    torch.testing.assert_close(
        torch.from_numpy(similarities),
        padded_max_sim([torch.from_numpy(each) for each in queries], [torch.from_numpy(each) for each in found]),
    )
    np.testing.assert_allclose(served.similarity(queries[0], found[1]), similarities[:1, 1:2], atol=1e-6)
    for unsuitable in ({"precision": "int8"}, {"output_file": tmp_path / "a.npy"}, {"devices": ["cpu"]}):
        with pytest.raises(ValueError, match=r"needs one vector a text|stores one vector a text"):
            served.encode(PROSE[:1], **unsuitable)


def test_retrieval_in_training_ranks_by_max_sim() -> None:
    encoder = Encoder(make_model("colbert"), tiny_tokenizer())
    corpus, queries = tuple(PROSE[:7]), tuple(line[:30] for line in PROSE[2:5])
    ranking = encoder.similarity(encoder.encode_queries(queries), encoder.encode(corpus)).argsort(axis=1)[:, ::-1]
    second = tuple(frozenset({int(row[1])}) for row in ranking)
    task = RetrievalEval("prose", queries, ("", "", ""), corpus, "", second)
    metrics = evaluate_retrieval(encoder, [task], share_over_ranks=False)
    assert metrics["mrr@10"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"pooling": "last"}, "averages none"),
        ({"contrastive_loss": "cosent"}, "compares one vector a text"),
        ({"similarity": "dot", "normalize_embeddings": False}, "unit length"),
        ({"quantization_aware": "int8"}, "`quantization_aware` is about one vector"),
        ({"both_directions": True}, "`both_directions` is about one vector"),
        ({"vector_weight": 1.0}, "`vector_weight` is about one vector"),
    ],
)
def test_what_needs_one_vector_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ContrastiveOptions(multi_vector=True, **options)


def test_uses_of_one_vector_are_refused_with_a_sentence() -> None:
    encoder = Encoder(make_model("colbert"), tiny_tokenizer())
    for use in (
        lambda: list(encoder.embed(["a"], "", "document")),
        lambda: encoder.encode_tokens(encoder.tokenize(["a"])),
        lambda: encoder.calibrate(["a"]),
    ):
        with pytest.raises(ValueError, match="needs one vector a text"):
            use()
