"""What each task is trained for: settings of data sets and of the recipe, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llamafactory_embed.hparams.contrastive import LOSSES, ContrastiveOptions
from llamafactory_embed.hparams.loss_terms import READ_BY
from llamafactory_embed.hparams.objectives import (
    OPTION_OF,
    check_objective,
    make_objective,
    objectives_of_tasks,
    read_objectives,
    served_sizes,
)


def test_a_tasks_settings_replace_those_of_the_recipe() -> None:
    options = ContrastiveOptions(loss_temperature=0.02, objectives={"sts": {"loss": "cosent", "temperature": 0.1}})
    objective = make_objective(options, {"loss": "cosent", "temperature": 0.1, "weight": 2}, "sts")
    assert objective.options.contrastive_loss == "cosent"
    assert objective.options.loss_temperature == 0.1
    assert objective.weight == 2.0
    assert make_objective(options, {}, "sts").options == ContrastiveOptions(loss_temperature=0.02)


def test_what_the_recipe_sets_for_its_own_loss_does_not_concern_a_task_with_another() -> None:
    options = ContrastiveOptions(
        num_negatives=2, kl_weight=0.5, same_side_negatives=True, focal_gamma=0.5, mixed_negatives=1, guide_model="g",
        guide_margin=0.1, mask_own_negatives=True, hardness_strength=5.0, matryoshka_dims=[8, 4],
        matryoshka_weights=[1.0, 0.5], vector_weight=1.0, spread_out_weight=1.0,
    )  # fmt: skip
    for loss, facts in LOSSES.items():
        found = make_objective(options, {"loss": loss}, "task").options
        read = {name for name, losses in READ_BY.items() if loss in losses}
        assert {name for name in READ_BY if name != "pair_margin" and getattr(found, name)} <= read
        assert found.spread_out_weight == 1.0
        assert (found.vector_weight == 1.0) is not facts.needs_vectors
    without = make_objective(options, {"num_negatives": 0}, "task").options
    assert (without.kl_weight, without.mixed_negatives, without.hardness_strength) == (0, 0, 0)
    assert make_objective(options, {"matryoshka_dims": [2]}, "task").options.matryoshka_weights is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("cosent", "must map settings to values, such as `loss: cosent`, not 'cosent'"),
        ({"lss": "cosent"}, "`lss` is not a setting of an objective; did you mean `loss`?"),
        ({"contrastive_loss": "cosent"}, "`contrastive_loss` is not a setting of an objective; did you mean `loss`?"),
        ({"loss": "cosnet"}, "`loss` must be one of .* not 'cosnet'; did you mean `cosent`?"),
        ({"temperature": 0}, "`temperature` must be at least 1e-06, not 0"),
        ({"own_passages_only": "no"}, "`own_passages_only` must be true or false, not 'no'"),
        ({"weight": 0}, "`weight` must be a number above 0, not 0"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"Data set `a`:? {sentence}"):
        check_objective(settings, "Data set `a`")
    with pytest.raises(ValueError, match=sentence):
        read_objectives(ContrastiveOptions(objectives={"a": settings}))


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"contrastive_loss": "cosent", "focal_gamma": 0.5}, "`focal_gamma` belongs to `contrastive_loss: info_nce`"),
    ({"pair_margin": 0.1}, "`pair_margin` belongs to `contrastive_loss: pairs or online_pairs or triplet`"),
    ({"same_side_negatives": True, "both_directions": True}, "leave one of them out"),
    ({"mask_own_negatives": True}, "`mask_own_negatives` needs `false_negative_margin` or `guide_model`"),
    ({"guide_margin": 0.1}, "`guide_margin` belongs to `guide_model`"),
    ({"mixed_negatives": 1}, "`mixed_negatives` mixes two hard negatives .* at least 2"),
    ({"hardness_strength": 5.0, "num_negatives": 0}, "`hardness_strength` .* `hardness_of: in_batch_negatives`"),
    ({"contrastive_loss": "vector_distillation", "vector_weight": 1.0}, "`vector_weight` adds"),
    ({"vector_distance": "similarities", "teacher_projection": True}, "compares vectors of any sizes"),
    ({"contrastive_loss": "vector_distillation", "matryoshka_dims": [8]}, "`vector_distillation` compares whole"),
    ({"matryoshka_weights": [1.0]}, "name the sizes"),
    ({"matryoshka_dims": [8, 4], "matryoshka_weights": [1.0]}, "has 1 numbers for 2 `matryoshka_dims`"),
    ({"matryoshka_dims": [8], "matryoshka_weights": [0.0]}, "must be at least 0, and one of them above"),
]


@pytest.mark.parametrize(("options", "sentence"), CONTRADICTIONS, ids=["+".join(each) for each, _ in CONTRADICTIONS])
def test_options_without_effect_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ContrastiveOptions(**options)


def test_one_batch_has_one_objective() -> None:
    mixed = ContrastiveOptions(task_batching="mixed")
    assert len(objectives_of_tasks(mixed, {"a": {}, "b": {"own_passages_only": True}})) == 2
    with pytest.raises(ValueError, match=r"`task_batching: mixed` .* a and b differ: use"):
        objectives_of_tasks(mixed, {"a": {}, "b": {"loss": "cosent"}})


def test_one_embedder_has_one_similarity() -> None:
    given = {"a": {"loss": "repllama"}, "b": {"loss": "cosent"}}
    sentence = re.escape("`a` by dot, `b` by cosine")
    with pytest.raises(ValueError, match=sentence):
        objectives_of_tasks(ContrastiveOptions(), given)


def test_the_checkpoint_says_every_size_that_was_trained() -> None:
    found = objectives_of_tasks(ContrastiveOptions(matryoshka_dims=[8]), {"a": {}, "b": {"matryoshka_dims": [4, 16]}})
    assert served_sizes(list(found.values())) == [16, 8, 4]


def test_every_setting_is_an_option() -> None:
    assert set(OPTION_OF.values()) <= {name for name in vars(ContrastiveOptions()) if name != "objectives"}
