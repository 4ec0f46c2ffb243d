"""Task weights against the numbers of tDRO: measures, gradients, optimizers, schedules, averages, weighted losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llamafactory_embed.hparams.tdro import TdroOptions
from llamafactory_embed.train.embed.tdro.measure import MeasureAccumulator, robust_loss
from llamafactory_embed.train.embed.tdro.task_weights import TaskWeights, clip_gradient
from tests.golden.case_files import GoldenCase, golden_cases


# What the cases call a measure and an optimizer.
MEASURES = {"raw": "loss", "difference_over_ref": "relative_difference"}
OPTIMIZERS = {"adamw_torch": "adamw"}


def options_of(config: dict[str, Any]) -> TdroOptions:
    schedule = {"tdro_warmup_steps": config["warmup_steps"], "tdro_min_lr_ratio": config["min_lr_ratio"]}
    return TdroOptions(
        tdro_lr=config["eta"],
        tdro_measure=MEASURES.get(config["mode"], config["mode"]),
        tdro_norm=config["p_norm"] or 0,
        tdro_normalize_on_update=config["normalize_weights_on_every_update"],
        tdro_ema=config["ema"],
        tdro_optimizer=OPTIMIZERS.get(config["optimizer"], config["optimizer"]),
        tdro_momentum=config["momentum"],
        tdro_dampening=config["dampening"],
        tdro_clip=config["clip"],
        tdro_max_grad=config["max_grad"],
        tdro_scheduler=config["scheduler"],
        **(schedule if config["scheduler"] != "constant" else {}),
    )


def tensors_of(micro_batch: dict[str, Any], with_reference: bool = True) -> tuple[Tensor, Tensor | None, Tensor]:
    """Losses, reference losses and tasks."""
    reference = torch.tensor(micro_batch["ref_loss"], dtype=torch.float64) if with_reference else None
    losses = torch.tensor(micro_batch["proxy_loss"], dtype=torch.float64)
    return losses, reference, torch.tensor(micro_batch["domain_ids"])


def expect(actual: Tensor | float, wanted: Any, case: GoldenCase, what: str) -> None:
    tolerance = case.data["tolerance"]
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64),
        torch.tensor(wanted, dtype=torch.float64),
        atol=tolerance["atol"],
        rtol=tolerance["rtol"],
        msg=lambda text: f"{what}: {text}",
    )


@golden_cases("tdro/update")
def test_updates(case: GoldenCase) -> None:
    groups = case.data["groups"]
    for run in case.data["runs"]:
        config = run["config"]
        options = options_of(config)
        weights = TaskWeights(config["start_weights"], options)
        measures = MeasureAccumulator(groups, options.tdro_measure, options.tdro_norm)
        micro_batches = iter(case.data["microbatches"])
        assert len(run["steps"]) == config["num_training_steps"]
        for number, step in enumerate(run["steps"]):
            where = f"{run['id']}, step {number}"
            assert len(step["microbatches"]) == config["gradient_accumulation_steps"]
            for last, wanted in zip(reversed(range(len(step["microbatches"]))), step["microbatches"], strict=True):
                losses, reference, tasks = tensors_of(next(micro_batches), config["reference_losses_given"])
                alone = MeasureAccumulator(groups, options.tdro_measure, options.tdro_norm)
                alone.add(losses, reference, tasks)
                expect(alone.finish().measures, wanted["group_gradient"], case, f"{where}: group gradient")
                measures.add(losses, reference, tasks)
                if last == 0:
                    gradient = measures.finish().measures
                    rate = weights.update(gradient, config["num_training_steps"])
                found = robust_loss(losses, tasks, weights.current)
                expect(found, wanted["robust_loss"], case, f"{where}: robust loss")
            expect(gradient, step["gradient_raw"], case, f"{where}: gradient")
            expect(clip_gradient(gradient, options), step["gradient_clipped"], case, f"{where}: clipped gradient")
            expect(rate, step["lr"], case, f"{where}: learning rate")
            expect(weights.log_weights, step["log_weights"], case, f"{where}: log weights")
            expect(weights.current, step["curr"], case, f"{where}: weights")
            expect(weights.mean, step["mean"], case, f"{where}: mean")
            expect(weights.moving_average, step["ema"], case, f"{where}: moving average")


@golden_cases("tdro/update")
def test_the_measure_of_the_paper(case: GoldenCase) -> None:
    paper = case.part("paper_formula")
    for name, accumulated in (("per_microbatch", 1), ("per_step_of_two_microbatches", 2)):
        if name not in paper:
            continue
        measures = MeasureAccumulator(case.data["groups"], "paper_ratio", norm=1.0)
        found = []
        for number, micro_batch in enumerate(case.data["microbatches"], start=1):
            measures.add(*tensors_of(micro_batch))
            if number % accumulated == 0:
                found.append(measures.finish().measures)
        wanted = [[value or 0.0 for value in each] for each in paper[name]]  # no value: no example of the group
        expect(torch.stack(found), wanted, case, name)
