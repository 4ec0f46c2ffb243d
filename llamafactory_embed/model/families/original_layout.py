"""What the native classes share: a saved checkpoint stays one that the original's own code reads.

The classes carry the names of the originals', so that `architectures` in config.json, and with it every tool that
looks there, stays what it was.
"""

from __future__ import annotations

from typing import Any, NoReturn


class OriginalConfig:
    """Mixed into a configuration of transformers 5: writes config.json with the keys that the original wrote under
    transformers 4, which reads neither `rope_parameters` (and would fall back to another `rope_theta`) nor `dtype`."""

    def to_dict(self) -> dict[str, Any]:
        written = super().to_dict()  # type: ignore[misc]
        written.pop("layer_types", None)  # follows from the other keys
        rope = written.pop("rope_parameters", None)
        if rope:
            scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
            written["rope_theta"] = rope["rope_theta"]
            written["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
        return written

    def to_diff_dict(self) -> dict[str, Any]:
        """What is saved."""
        written = super().to_diff_dict()  # type: ignore[misc]
        dtype = written.pop("dtype", None)
        return written if dtype is None else written | {"torch_dtype": dtype}


class OriginalCode:
    """Mixed into whatever a checkpoint's `auto_map` names. LLaMA-Factory marks such classes so that saving copies the
    file that defines them and rewrites `auto_map`; the original's entries are to stay."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Nothing of ours goes into a checkpoint."""


class DiffusionLanguageModel(OriginalCode):
    """Mixed into a model with a head that sees all tokens: what assumes that it sees only those before is refused,
    because nothing would show that it is wrong."""

    @property
    def loss_function(self) -> NoReturn:
        """Asked for by a forward with `labels`."""
        raise ValueError(
            f"{type(self).__name__} sees the tokens that it would have to predict: train it with `stage: ddm` or "
            "`ddm-sft`, which mask them, not with `stage: pt` or `sft`."
        )

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Asked for by `generate`, which goes from left to right."""
        raise ValueError(
            f"{type(self).__name__} is a diffusion language model, which `generate` cannot sample from: use "
            "`stage: ddm` or `ddm-sft` with `do_predict: true`."
        )
