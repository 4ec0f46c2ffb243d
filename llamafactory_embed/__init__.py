"""Text embedders and diffusion language models from any language model, as training stages of LLaMA-Factory."""

# Loaded at every start of Python (see `autoload`), so nothing is imported here, not even typing.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .encoder import Encoder

__version__ = "0.1.0"
__all__ = ["Encoder", "__version__"]


def __getattr__(name: str) -> object:
    """Import `Encoder` when it is asked for."""
    if name == "Encoder":
        from .encoder import Encoder

        return Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
