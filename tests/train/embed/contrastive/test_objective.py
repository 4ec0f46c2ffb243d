"""The objective on a real batch: which texts are compared, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llamafactory_embed.hparams.contrastive import ContrastiveOptions
from llamafactory_embed.train.embed.contrastive.batch import ContrastiveCollator
from llamafactory_embed.train.embed.contrastive.objective import ContrastiveObjective
from llamafactory_embed.train.embed.losses.distillation import kl_distillation
from tests.embedders import make_embedder, make_examples, make_tokenizer


@pytest.fixture(scope="module")
def model():
    return make_embedder("llama")


def collate(model, examples):
    return ContrastiveCollator(make_tokenizer(model), max_tokens=100)(examples)["batch"]


def test_embeddings_come_in_the_order_of_the_rows(model) -> None:
    examples = make_examples(4, 2)
    batch = collate(model, examples)
    with torch.no_grad():
        rows = batch.with_embeddings(model(batch.packed))
        tokenizer = make_tokenizer(model)
        for row, example in enumerate(examples):
            alone = collate(model, [example])
            own = alone.with_embeddings(model(alone.packed))
            torch.testing.assert_close(rows.queries[row], own.queries[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(rows.passages[row], own.passages[0], atol=1e-5, rtol=1e-5)
            assert rows.passage_ids is not None
            assert own.passage_ids is not None
            assert torch.equal(rows.passage_ids[row], own.passage_ids[0])
    assert tokenizer.queries(["a"], "b")[0].token_ids != tokenizer.documents(["a"])[0].token_ids


def test_info_nce_is_cross_entropy_over_all_documents(model) -> None:
    batch = collate(model, make_examples(5, 1))
    embeddings = torch.randn(15, 8, generator=torch.Generator().manual_seed(0))
    loss = ContrastiveObjective(ContrastiveOptions(loss_temperature=0.1))(embeddings, batch)
    queries, documents = F.normalize(embeddings[:5], dim=1), F.normalize(embeddings[5:], dim=1)
    expected = F.cross_entropy(queries @ documents.T / 0.1, torch.arange(5))
    torch.testing.assert_close(loss, expected)


def test_a_negative_that_is_another_rows_positive_text_is_left_out_for_that_row(model) -> None:
    examples = make_examples(3, 1)
    twin = dataclasses.replace(examples[0], negatives=(examples[1].positive,))
    batch = collate(model, [twin, *examples[1:]])
    embeddings = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    loss = ContrastiveObjective(ContrastiveOptions(loss_temperature=1.0))(embeddings, batch)
    queries, documents = F.normalize(embeddings[:3], dim=1), F.normalize(embeddings[3:], dim=1)
    scores = queries @ documents.T
    scores[1, 3] = -torch.inf  # row 0's negative is row 1's positive
    torch.testing.assert_close(loss, F.cross_entropy(scores, torch.arange(3)))


def test_matryoshka_is_the_sum_over_prefixes(model) -> None:
    """Cosines normalize the prefix anew, dot products leave it as it is."""
    batch = collate(model, make_examples(5, 1))
    embeddings = torch.randn(15, 8, generator=torch.Generator().manual_seed(0))
    for similarity in ("cosine", "dot"):
        losses = []
        for dim in (8, 3):
            prefix = embeddings[:, :dim] if similarity == "dot" else F.normalize(embeddings[:, :dim], dim=1)
            losses.append(F.cross_entropy(prefix[:5] @ prefix[5:].T / 0.1, torch.arange(5)))
        options = ContrastiveOptions(
            loss_temperature=0.1,
            similarity=similarity,
            normalize_embeddings=similarity == "cosine",
            matryoshka_dims=[8, 3],
        )
        torch.testing.assert_close(ContrastiveObjective(options)(embeddings, batch), torch.stack(losses).sum())


@pytest.mark.parametrize("dims", [None, [8, 3]], ids=["whole", "matryoshka"])
def test_a_teacher_adds_its_divergence(model, dims) -> None:
    """InfoNCE alone plus the weight times the KL divergence, whose value in closed form is another test's matter."""
    batch = collate(model, make_examples(5, 2, scores=True))
    embeddings = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    shared = {"loss_temperature": 0.1, "num_negatives": 2, "teacher_temperature": 0.5, "matryoshka_dims": dims}
    alone = ContrastiveObjective(ContrastiveOptions(**shared))(embeddings, batch)
    joint = ContrastiveObjective(ContrastiveOptions(kl_weight=0.3, **shared))(embeddings, batch)
    rows = batch.with_embeddings(embeddings)
    divergences = [
        kl_distillation(rows if dim is None else rows.prefix(dim), ContrastiveOptions(**shared)).mean()
        for dim in dims or [None]
    ]
    assert min(divergences) > 0.01
    torch.testing.assert_close(joint, alone + 0.3 * torch.stack(divergences).sum())


@pytest.mark.parametrize("scores", [None, (0.5,)], ids=["none", "of-the-pair"])
def test_rows_without_a_teacher_are_trained_by_the_loss_alone(model, scores) -> None:
    examples = [dataclasses.replace(example, scores=scores) for example in make_examples(5, 1)]
    batch = collate(model, examples)
    embeddings = torch.randn(15, 8, generator=torch.Generator().manual_seed(0))
    alone = ContrastiveObjective(ContrastiveOptions())(embeddings, batch)
    torch.testing.assert_close(ContrastiveObjective(ContrastiveOptions(kl_weight=0.3))(embeddings, batch), alone)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"contrastive_loss": "kl_distillation", "kl_weight": 0.3},
            "`kl_weight` adds a teacher's KL divergence to `contrastive_loss: info_nce`, not to kl_distillation",
        ),
        ({"num_negatives": 0, "kl_weight": 0.3}, "`kl_weight` compares .* set `num_negatives` to at least 1"),
    ],
)
def test_a_teacher_that_could_add_nothing_is_refused(options, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        ContrastiveOptions(**options)


@pytest.mark.parametrize(
    ("options", "negatives", "sentence"),
    [
        ({"contrastive_loss": "repllama"}, 0, "`num_negatives` to at least 1"),
        ({"contrastive_loss": "kl_distillation"}, 1, "needs data with a `score` column"),
        ({"contrastive_loss": "cosent"}, 0, "needs data with a `score` column"),
        ({"matryoshka_dims": [64]}, 1, r"`matryoshka_dims` must lie between 1 and the embedding's size 8, not \[64\]"),
        ({"matryoshka_dims": [0, 8]}, 1, "`matryoshka_dims` must lie between 1 and the embedding's size 8"),
    ],
)
def test_data_that_do_not_suit_the_loss_are_refused(model, options, negatives, sentence) -> None:
    batch = collate(model, make_examples(3, negatives))
    embeddings = torch.randn(6 + 3 * negatives, 8)
    with pytest.raises(ValueError, match=sentence):
        ContrastiveObjective(ContrastiveOptions(**options))(embeddings, batch)


def test_uneven_negatives_in_a_batch_are_refused(model) -> None:
    with pytest.raises(ValueError, match="different numbers of negatives"):
        collate(model, [*make_examples(2, 1), *make_examples(2, 0)])


@pytest.mark.parametrize("loss", ["info_nce", "cosent", "angle"])
def test_rows_without_negatives_are_a_batch(model, loss) -> None:
    batch = collate(
        model, [dataclasses.replace(each, scores=(row / 4,)) for row, each in enumerate(make_examples(4, 0))]
    )
    embeddings = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = ContrastiveObjective(ContrastiveOptions(contrastive_loss=loss))(embeddings, batch)
    assert value > 0
    assert (torch.autograd.grad(value, embeddings)[0].abs().sum(dim=1) > 0).all()


def test_a_teachers_vectors_are_those_of_all_rows_or_of_none(model) -> None:
    taught = [dataclasses.replace(each, teacher_vectors=np.ones((2, 5), np.float32)) for each in make_examples(3, 1)]
    batch = collate(model, taught)
    assert batch.teacher_vectors.shape == (3, 2, 5)
    assert collate(model, make_examples(3, 1)).teacher_vectors is None
    other = dataclasses.replace(taught[0], teacher_vectors=np.ones((1, 5), np.float32))
    for odd in (other, make_examples(1, 1)[0]):
        with pytest.raises(ValueError, match="Rows of prose bring teacher's vectors of different sizes"):
            collate(model, [*taught[1:], odd])
    of_another_task = dataclasses.replace(make_examples(1, 1)[0], task="other", task_index=1)
    assert collate(model, [*taught[1:], of_another_task]).teacher_vectors is None  # mixed batches
