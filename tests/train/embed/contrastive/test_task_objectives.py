"""The objectives of a run: which loss a batch gets, what is logged, and GradCache over every kind of objective."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llamafactory_embed.hparams.contrastive import ContrastiveOptions
from llamafactory_embed.hparams.objectives import Objective
from llamafactory_embed.train.embed.contrastive.objective import ContrastiveObjective, LossCurves, TaskObjectives
from llamafactory_embed.train.embed.contrastive.projection import TeacherProjection
from llamafactory_embed.train.embed.grad_cache import cached_backward
from llamafactory_embed.train.embed.losses.rows import EmbeddedRows
from llamafactory_embed.train.embed.losses.vectors import vector_distances


ROWS, NEGATIVES, SIZE, TEACHER = 6, 2, 8, 5
TEXTS = ROWS * (2 + NEGATIVES)


@dataclass
class FakeBatch:
    """What objectives ask of a batch, without texts."""

    task: int = 0
    teacher_vectors: Tensor | None = None
    negatives_per_row: int = NEGATIVES
    vectors_each: None = None

    @property
    def task_indices(self) -> Tensor:
        return torch.full((ROWS,), self.task)

    @property
    def scores(self) -> Tensor:
        return (torch.arange(ROWS * (1 + NEGATIVES)) % 2).view(ROWS, 1 + NEGATIVES).float()

    @property
    def examples(self) -> list[Any]:
        return []

    def with_embeddings(self, embeddings: Tensor) -> EmbeddedRows:
        queries, positives, negatives = embeddings.split([ROWS, ROWS, ROWS * NEGATIVES])
        passages = torch.cat([positives.unsqueeze(1), negatives.view(ROWS, NEGATIVES, -1)], dim=1)
        ids = torch.arange(ROWS * (1 + NEGATIVES)).view(ROWS, 1 + NEGATIVES)
        return EmbeddedRows(queries, passages, ids, self.scores, teacher_vectors=self.teacher_vectors)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_with_teacher(size: int = TEACHER, task: int = 0) -> Any:
    return FakeBatch(task, random(ROWS, 2, size, seed=5))


@dataclass
class Chunk:
    """Some of the texts, as GradCache sees a packed batch."""

    text_indices: list[int]

    @property
    def token_ids(self) -> list[int]:
        return self.text_indices  # one token each


class FakeGuide:
    def embed(self, examples: Any, device: torch.device) -> EmbeddedRows:
        return EmbeddedRows(random(ROWS, 4, seed=8), random(ROWS, 1 + NEGATIVES, 4, seed=9))


OBJECTIVES: dict[str, dict[str, Any]] = {
    "everything of InfoNCE": {
        "same_side_negatives": True,
        "false_negative_margin": 0.1,
        "mask_own_negatives": True,
        "guide_model": "guide",
        "guide_margin": 0.1,
        "hardness_strength": 2.0,
        "focal_gamma": 0.5,
        "mixed_negatives": 2,
        "candidate_tile": 4,
        "spread_out_weight": 0.5,
        "matryoshka_dims": [8, 4],
        "matryoshka_weights": [1.0, 0.3],
    },
    "projection beside": {"vector_weight": 2.0, "teacher_projection": True},
    **{
        loss: {"contrastive_loss": loss}
        for loss in ("cosent", "mse", "pairs", "online_pairs", "triplet", "vector_distillation")
    },
}


@pytest.mark.parametrize("case", OBJECTIVES)
def test_cached_gradients_equal_plain_ones(case: str) -> None:
    """The chunks are given in any order; a linear map plays the model."""
    given = {"loss_temperature": 0.2, "num_negatives": NEGATIVES, **OBJECTIVES[case]}
    options = ContrastiveOptions(**given)
    batch = batch_with_teacher(SIZE if case == "vector_distillation" else TEACHER)
    inputs = random(TEXTS, 3, seed=1)
    found = []
    for cached in (False, True):
        model = nn.Linear(3, SIZE, bias=False)
        model.weight.data.copy_(random(SIZE, 3, seed=2))
        projection = TeacherProjection.of(options, learning_rate=0.1)
        function = ContrastiveObjective(options, projection, FakeGuide())  # type: ignore[arg-type]
        if cached:
            chunks: list[Any] = [Chunk(list(range(start, TEXTS, 3))) for start in (1, 2, 0)]
            loss = cached_backward(
                lambda parts, model=model: model(inputs[parts[0].text_indices]),  # type: ignore[misc]
                chunks,
                lambda embeddings, function=function: function(embeddings, batch),  # type: ignore[misc]
                torch.Tensor.backward,
                device=torch.device("cpu"),
            )
        else:
            loss = function(model(inputs), batch)
            loss.backward()
        assert model.weight.grad is not None
        found.append((loss.detach(), model.weight.grad, *([projection.weight] if projection else [])))
    for plain, cached_one in zip(*found, strict=True):
        torch.testing.assert_close(cached_one, plain)
    assert found[0][1].abs().max() > 1e-4


def test_each_batch_gets_the_objective_of_its_task() -> None:
    options = ContrastiveOptions(loss_temperature=0.2, num_negatives=NEGATIVES)
    other = dataclasses.replace(options, contrastive_loss="triplet")
    curves = LossCurves(["search", "sts"], torch.device("cpu"))
    objectives = TaskObjectives([Objective(options), Objective(other, weight=3.0)], curves)
    embeddings = random(TEXTS, SIZE)
    expected = [ContrastiveObjective(each)(embeddings, FakeBatch()) for each in (options, other)]  # type: ignore[arg-type]
    found = [objectives(embeddings, FakeBatch(task)) for task in (0, 1, 1)]  # type: ignore[arg-type]
    torch.testing.assert_close(torch.stack(found), torch.stack([expected[0], 3 * expected[1], 3 * expected[1]]))
    means = curves.take_means()
    assert means == pytest.approx({"loss/search": float(expected[0]), "loss/sts": float(expected[1])})
    objectives(embeddings * 2, FakeBatch(1))  # type: ignore[arg-type]
    assert list(curves.take_means()) == ["loss/sts"]  # a task that had no batch has no mean
    assert curves.take_means() == {}


def test_terms_are_added_with_their_weights() -> None:
    base = {"loss_temperature": 0.2, "num_negatives": NEGATIVES}
    embeddings, batch = random(TEXTS, SIZE), batch_with_teacher(SIZE)

    def loss(**more: Any) -> Tensor:
        return ContrastiveObjective(ContrastiveOptions(**base, **more))(embeddings, batch)

    vectors = loss(contrastive_loss="vector_distillation")
    torch.testing.assert_close(loss(vector_weight=0.7), loss() + 0.7 * vectors)
    torch.testing.assert_close(
        loss(matryoshka_dims=[8, 2], matryoshka_weights=[0.5, 2.0], vector_weight=0.7),
        0.5 * loss(matryoshka_dims=[8]) + 2 * loss(matryoshka_dims=[2]) + 0.7 * vectors,
    )


def test_a_projection_learns_the_map_between_two_spaces() -> None:
    """The teacher's vectors are a linear map of the embeddings: the distance goes to 0."""
    options = ContrastiveOptions(contrastive_loss="vector_distillation", vector_distance="mse")
    truth = random(TEACHER, SIZE, seed=3)
    projection = TeacherProjection(learning_rate=0.05)
    losses = []
    for step in range(300):
        rows = FakeBatch().with_embeddings(random(TEXTS, SIZE, seed=step))
        texts = torch.cat([rows.queries.unsqueeze(1), rows.passages[:, :1]], dim=1)
        rows = dataclasses.replace(rows, teacher_vectors=texts @ truth.T)
        losses.append(float(projection.distance(rows, options).mean()))
    assert losses[-1] < 0.01 * losses[0]
    assert projection.weight is not None
    torch.testing.assert_close(projection.weight.detach(), truth, atol=0.1, rtol=0.1)


def test_a_projection_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    options = ContrastiveOptions(contrastive_loss="vector_distillation")
    whole, before, after = (TeacherProjection(learning_rate=0.1) for _ in range(3))
    rows = batch_with_teacher().with_embeddings(random(TEXTS, SIZE))
    distances = [whole.distance(rows, options) for _ in range(4)]
    for _ in range(2):
        before.distance(rows, options)
    before.save(tmp_path / "map.safetensors")
    after.load(tmp_path / "map.safetensors", torch.device("cpu"))
    for expected in distances[2:]:
        torch.testing.assert_close(after.distance(rows, options), expected)


def test_the_student_learns_through_the_map_as_it_was() -> None:
    options = ContrastiveOptions(contrastive_loss="vector_distillation")
    projection = TeacherProjection(learning_rate=0.1)
    batch = batch_with_teacher()
    embeddings = random(TEXTS, SIZE).requires_grad_()
    rows = batch.with_embeddings(embeddings)
    projection.distance(rows, options)
    assert projection.weight is not None
    weight = projection.weight.detach().clone()
    distances = projection.distance(rows, options)
    texts = torch.cat([rows.queries.unsqueeze(1), rows.passages[:, :1]], dim=1)
    expected = vector_distances(texts @ weight.T, batch.teacher_vectors, "cosine").mean(dim=1)
    torch.testing.assert_close(distances, expected)
    (found,) = torch.autograd.grad(distances.sum(), embeddings, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), embeddings)[0])


def test_vectors_of_another_size_ask_for_the_map() -> None:
    options = ContrastiveOptions(contrastive_loss="vector_distillation")
    with pytest.raises(ValueError, match="have 5 numbers and embeddings 8: set `teacher_projection: true`"):
        ContrastiveObjective(options)(random(TEXTS, SIZE), batch_with_teacher())
    projection = TeacherProjection(learning_rate=0.1)
    function = ContrastiveObjective(options, projection)
    function(random(TEXTS, SIZE), batch_with_teacher())
    with pytest.raises(ValueError, match=r"learns one map, here from 8 to 5 .* brings vectors of 4"):
        function(random(TEXTS, SIZE), batch_with_teacher(4))
