"""Options of the host that the stages of this package do not support: what they would silently ignore or get wrong.

One table, read before a run and by `recipe check`. It needs no torch and no host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .own import CONTRASTIVE, DDM, DDM_SFT, MNTP, TDRO, WORD_TASK


OWN_STAGES = tuple(stage.name for stage in (CONTRASTIVE, TDRO, MNTP, WORD_TASK, DDM, DDM_SFT))


class Refusal(NamedTuple):
    """Values of an option that are refused."""

    is_refused: Callable[[Any], bool]
    reason: str
    """Why, and what to do instead; the end of a sentence."""


def _is_off(value: object) -> bool:
    return value is False


def _updates_in_backward(optimizer: object) -> bool:
    name = str(getattr(optimizer, "value", optimizer))
    return name in ("lomo", "adalomo") or name.endswith("_layerwise")


def _is_not_random(strategy: object) -> bool:
    return strategy not in (None, "random")


def _records_graphs(mode: object) -> bool:
    return mode in ("reduce-overhead", "max-autotune")  # CUDA graphs


def _deals_out_batches(config: object) -> bool:
    settings = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
    return any(settings.get(name) for name in ("split_batches", "dispatch_batches"))


_PACKED = "a row packs several texts"
_SEVERAL_BACKWARDS = "it updates parameters within a backward pass, and a step here may run several: leave it out"
_OTHER_LOSS = "the stage has another loss: unset it"
_OTHER_ATTENTION = "it replaces the attention or the layers that the stage changes: unset it"

REFUSED: dict[str, Refusal] = {
    # ---- what a packed row breaks ----
    "neftune_noise_alpha": Refusal(
        bool, f"its noise is scaled by the length of a row, and {_PACKED}: unset it, or use dropout"
    ),
    "torch_compile_mode": Refusal(
        _records_graphs,
        "it records a graph for every length of a row: leave it out, or use `max-autotune-no-cudagraphs`",
    ),
    "fp8": Refusal(
        bool, f"{_PACKED}, so its tokens are not a multiple of 16, which FP8 matrices must be: use `bf16: true`"
    ),
    "mixture_of_depths": Refusal(bool, f"{_PACKED}, which would compete for its layers: unset it"),
    "parallelism_config": Refusal(bool, f"{_PACKED}, which must not be cut apart between devices: unset it"),
    # ---- losses of other stages ----
    "label_smoothing_factor": Refusal(bool, _OTHER_LOSS),
    "use_dft_loss": Refusal(bool, _OTHER_LOSS),
    "use_asft_loss": Refusal(bool, _OTHER_LOSS),
    "use_eaft_loss": Refusal(bool, _OTHER_LOSS),
    "moe_aux_loss_coef": Refusal(
        bool, "the router's loss is computed beside all logits, which the stage never computes: unset it"
    ),
    "average_tokens_across_devices": Refusal(
        _is_off, "the loss of a step is the same on any number of devices: leave it out"
    ),
    # ---- models and trainers of other kinds ----
    "use_unsloth": Refusal(bool, _OTHER_ATTENTION),
    "shift_attn": Refusal(bool, _OTHER_ATTENTION),
    "use_liger_kernel": Refusal(
        bool, "it does not reach the language model inside the stage's: use `enable_liger_kernel: true`"
    ),
    "use_kt": Refusal(bool, _OTHER_ATTENTION),
    # ---- optimizers ----
    "optim": Refusal(_updates_in_backward, _SEVERAL_BACKWARDS),
    "galore_layerwise": Refusal(bool, _SEVERAL_BACKWARDS),
    "apollo_layerwise": Refusal(bool, _SEVERAL_BACKWARDS),
    # ---- ranks that run different numbers of forwards ----
    "ddp_broadcast_buffers": Refusal(
        bool, "it sends buffers in every forward, and one rank may run more of them than another: leave it out"
    ),
    # ---- batches, which the stages plan for all ranks before the training ----
    "auto_find_batch_size": Refusal(
        bool, "batches are planned before the training: lower `per_device_train_batch_size` or `max_tokens_per_batch`"
    ),
    "train_sampling_strategy": Refusal(
        _is_not_random, "the stage plans its batches: leave it out (`disable_shuffling: true` keeps the data's order)"
    ),
    "sortish_sampler": Refusal(bool, "the stage plans its batches: leave it out"),
    "accelerator_config": Refusal(
        _deals_out_batches, "the stage plans its batches: leave out `split_batches` and `dispatch_batches`"
    ),
    "dataloader_persistent_workers": Refusal(
        bool, "data workers start anew in every epoch, whose number they must see: leave it out"
    ),
    # ---- predictions ----
    "predict_with_generate": Refusal(bool, "`do_predict: true` is enough"),
}


def unsupported_settings(settings: Mapping[str, Any]) -> list[str]:
    """A sentence for each option in `settings` (values by name) that the `stage` among them does not support; none for
    a stage of the host or of another package."""
    if settings.get("stage") not in OWN_STAGES:
        return []
    return [
        f"`{name}: {_shown(settings[name])}` is not supported by `stage: {settings['stage']}`: {refusal.reason}."
        for name, refusal in REFUSED.items()
        if name in settings and refusal.is_refused(settings[name])
    ]


def refuse_unsupported(settings: Mapping[str, Any]) -> None:
    """Raise a ValueError for the first of them."""
    for sentence in unsupported_settings(settings):
        raise ValueError(sentence)


def check_that_the_base_is_kept(train_from_scratch: bool, finetuning_type: str) -> None:
    """Refuse to train an adapter on random weights, which no checkpoint would hold."""
    if train_from_scratch and finetuning_type in ("lora", "oft"):
        raise ValueError(
            f"`train_from_scratch: true` with `finetuning_type: {finetuning_type}` would save an adapter without the "
            "random weights below it: use `finetuning_type: full`."
        )


def _shown(value: object) -> str:
    """A value as a recipe writes it."""
    return str(value).lower() if isinstance(value, bool) else str(getattr(value, "value", value))
