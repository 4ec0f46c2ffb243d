"""Text embedders and diffusion language models from any language model, as training stages of LLaMA-Factory.

The public API is `Encoder` (use a trained embedder), `Stage` and `option` (write a stage of your own).
"""

# Loaded at every start of Python (see `autoload`), so nothing is imported here, not even typing.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .encoder import Encoder
    from .hparams.option import option
    from .stages.stage import Stage

__version__ = "0.1.0"
__all__ = ["Encoder", "Stage", "__version__", "option"]


def __getattr__(name: str) -> object:
    """Import a public name when it is asked for."""
    if name == "Encoder":
        from .encoder import Encoder

        return Encoder
    if name == "Stage":
        from .stages.stage import Stage

        return Stage
    if name == "option":
        from .hparams.option import option

        return option
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
