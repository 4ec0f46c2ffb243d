"""`stage: ddm` and `stage: ddm-sft`: diffusion language models, which fill in hidden tokens in any order."""
