"""A whole third-party stage: causal language modelling with a scaled loss. docs/write-a-stage.md shows this file."""

from dataclasses import dataclass
from typing import Literal

from llamafactory_embed import Stage, option


@dataclass
class ScaledPretrainingOptions:
    """What a recipe may set besides the host's options."""

    loss_scale: float = option(1.0, "Factor on the loss.", label="Loss scale", minimum=0.0, maximum=100.0)
    loss_sign: Literal["plus", "minus"] = option("plus", "Learn (plus) or unlearn (minus) the texts.")


STAGE = Stage(
    name="scaled-pt",
    options=ScaledPretrainingOptions,
    run="scaled_pt:run_scaled_pt",
    label="Scaled Pre-Training",
)


def run_scaled_pt(model_args, data_args, training_args, finetuning_args, generating_args, callbacks=None):
    """The host's pretraining workflow with another loss."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.extras.ploting import plot_loss
    from llamafactory.model import load_model, load_tokenizer
    from llamafactory.train.pt.trainer import CustomTrainer
    from transformers import DataCollatorForLanguageModeling

    options = finetuning_args.stage_options
    scale = options.loss_scale if options.loss_sign == "plus" else -options.loss_scale

    class ScaledTrainer(CustomTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss = scale * super().compute_loss(model, inputs, False, **kwargs)
            return (loss, {}) if return_outputs else loss

    tokenizer_module = load_tokenizer(model_args)
    tokenizer = tokenizer_module["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    dataset_module = get_dataset(template, model_args, data_args, training_args, stage="pt", **tokenizer_module)
    trainer = ScaledTrainer(
        model=load_model(tokenizer, model_args, finetuning_args, training_args.do_train),
        args=training_args,
        finetuning_args=finetuning_args,
        data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False),
        callbacks=callbacks,
        **dataset_module,
        **tokenizer_module,
    )
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    if trainer.is_world_process_zero() and finetuning_args.plot_loss:
        plot_loss(training_args.output_dir, keys=["loss"])
