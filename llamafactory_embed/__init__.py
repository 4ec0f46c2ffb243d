"""Text embedders and diffusion language models from any language model, as training stages of LLaMA-Factory."""

__version__ = "0.1.0"
