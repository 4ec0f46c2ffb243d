"""Chat with a diffusion language model behind LLaMA-Factory's own interfaces."""
