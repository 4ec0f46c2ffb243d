"""Text embedders and diffusion language models from any language model, as training stages of LLaMA-Factory.

The public API is `Encoder` (use a trained embedder), `open_encoder` (the same, and sentence-transformers behind it for
models that only it can run), `Stage` and `option` (write a stage of your own).
"""

# Loaded at every start of Python (see `autoload`), so nothing is imported here, not even typing.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .encoder import Encoder
    from .encoder.foreign import open_encoder
    from .hparams.option import option
    from .stages.stage import Stage

__version__ = "0.1.0"
__all__ = ["Encoder", "Stage", "__version__", "open_encoder", "option"]


def __getattr__(name: str) -> object:
    """Import a public name when it is asked for."""
    if name == "Encoder":
        from .encoder import Encoder

        return Encoder
    if name == "open_encoder":
        from .encoder.foreign import open_encoder

        return open_encoder
    if name == "Stage":
        from .stages.stage import Stage

        return Stage
    if name == "option":
        from .hparams.option import option

        return option
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
