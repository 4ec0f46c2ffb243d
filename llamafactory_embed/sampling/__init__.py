"""Generation with diffusion language models: one denoising loop, strategies as pure functions."""
