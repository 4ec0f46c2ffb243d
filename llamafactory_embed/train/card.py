"""Model cards of checkpoints: what one was made of and how, how it is read, how well it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cards.header import CardHeader, evaluations_by_dataset, hub_name, shown_name, write_card_file
from ..cards.sections import citation_section, metrics_section, property_table, settings_section
from ..data.registry import registered_entries
from ..data.retrieval.entries import split_slice
from ..loading.weights import ADAPTER_CONFIG_NAME
from ..model.mask_token import MaskedTokenRecord


if TYPE_CHECKING:
    from llamafactory.hparams import DataArguments, FinetuningArguments, ModelArguments, TrainingArguments

    from .trainer import WrappedModelTrainer

LIBRARY = "llamafactory-embed"


@dataclass(frozen=True)
class RunFacts:
    """What the arguments of a run say of the model that it made."""

    folder: Path
    name: str
    """The title of the card."""
    address: str
    """What others load the model by: its repository on the hub, or its folder as seen from where the run began."""
    base_model: str
    header: CardHeader
    """Without what the stage adds."""
    settings: Mapping[str, str]
    datasets: Sequence[str]
    eval_datasets: Sequence[str]
    samples: int

    @classmethod
    def gather(cls, trainer: WrappedModelTrainer, model_args: ModelArguments, data_args: DataArguments) -> RunFacts:
        """Of a finished run, whose checkpoint is written."""
        args: TrainingArguments = trainer.args
        options = trainer.finetuning_args.stage_options
        folder, base = Path(args.output_dir), str(model_args.model_name_or_path)
        is_inside = not folder.is_absolute() and ".." not in folder.parts
        names = [split_slice(name)[0] for name in data_args.dataset or []]
        return cls(
            folder=folder,
            name=(args.hub_model_id or folder.resolve().name).rpartition("/")[2],
            address=args.hub_model_id or (folder.as_posix() if is_inside else folder.name),
            base_model=shown_name(base),
            header=CardHeader(
                library=LIBRARY,
                base_model=hub_name(base),
                relation="adapter" if (folder / ADAPTER_CONFIG_NAME).is_file() else "finetune",
                license=options.card_license,
                languages=[code.strip() for code in (options.card_language or "").split(",") if code.strip()],
                datasets=hub_datasets(names, data_args.dataset_dir),
            ),
            settings=describe_settings(args, trainer.finetuning_args, data_args, trainer.state.global_step),
            datasets=names,
            eval_datasets=data_args.eval_dataset or [f"{name} (held-out part)" for name in names],
            samples=options.card_samples,
        )

    def write(
        self,
        lines: Sequence[str],
        works: Sequence[str],
        task: str,
        evaluated: Sequence[str],
        metrics: Mapping[str, float],
        **header: Any,
    ) -> None:
        """Write the card: the stage's lines, what every run has, and in the header the evaluations on the data sets
        `evaluated`, whose names the metrics carry."""
        evaluations = evaluations_by_dataset(task, evaluated, metrics)
        whole = dataclasses.replace(self.header, evaluations=evaluations, **header)
        closing = [*settings_section(self.settings), *citation_section([*works, "llamafactory"])]
        write_card_file(self.folder, self.name, whole, [*lines, *closing])


def write_card(
    facts: RunFacts,
    what_it_is: str,
    tags: Sequence[str],
    properties: Mapping[str, str],
    metrics: Mapping[str, float],
    task: str,
    works: Sequence[str] = (),
    eval_sets: Sequence[str] = (),
) -> None:
    """Write the card of a checkpoint that is not an embedder. `eval_sets` are the names that its metrics carry, if
    any."""
    lines = [
        f"Made of `{facts.base_model}` with llamafactory-embed, a plugin of LLaMA-Factory. {what_it_is}",
        "",
        *property_table({**properties, "data": ", ".join(facts.datasets) or "see the recipe"}),
        *metrics_section("On held-out data", metrics),
    ]
    evaluated = [name for name in eval_sets if name] or [", ".join(facts.eval_datasets)]
    facts.write(lines, works, task, evaluated, metrics, tags=tags, pipeline_tag=task)


def write_predictor_card(
    facts: RunFacts,
    what_it_is: str,
    tags: Sequence[str],
    record: MaskedTokenRecord,
    metrics: Mapping[str, float],
    task: str,
    works: Sequence[str],
    eval_sets: Sequence[str],
) -> None:
    """Write the card of a language model that predicts masked tokens."""
    properties = {
        "attention": "bidirectional",
        "mask token": f"`{record.mask_token}`, id {record.mask_token_id}",
        "a token is predicted at": "the position before it" if record.shift else "its own position",
    }
    write_card(facts, what_it_is, tags, properties, metrics, task, works, eval_sets)


def hub_datasets(names: Sequence[str], dataset_dir: Any) -> list[str]:
    """The repositories on the hub that data sets of the registry come from; local files have none."""
    if not names:
        return []
    entries = [entry for _, entry in registered_entries(names, dataset_dir, formatting="")]
    found = [hub_name(entry.get("hf_hub_url")) for entry in entries]
    return list(dict.fromkeys(name for name in found if name))


def describe_settings(
    args: TrainingArguments, finetuning_args: FinetuningArguments, data_args: DataArguments, steps: int
) -> dict[str, str]:
    """The settings that decide a result, as a card shows them."""
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    settings = {
        "steps": str(steps),
        "rows of a step": str(per_step),
        "learning rate": f"{args.learning_rate:g}, {getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}",
        "warm-up": f"{args.warmup_steps:g}",
        "optimizer": str(getattr(args.optim, "value", args.optim)),
        "weight decay": f"{args.weight_decay:g}",
        "precision": precision,
        "longest text": f"{data_args.cutoff_len} tokens",
        "seed": str(args.seed),
        "trained": finetuning_args.finetuning_type,
    }
    if finetuning_args.finetuning_type == "lora":
        target = finetuning_args.lora_target
        shown = ", ".join(target) if isinstance(target, list) else str(target)
        settings["trained"] = f"LoRA, rank {finetuning_args.lora_rank}, alpha {finetuning_args.lora_alpha}, on {shown}"
    options = finetuning_args.stage_options
    for name, shown in (("contrastive_loss", "loss"), ("loss_temperature", "temperature of the loss")):
        if hasattr(options, name):
            settings[shown] = str(getattr(options, name))
    return settings
