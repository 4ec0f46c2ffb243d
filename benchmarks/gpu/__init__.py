"""`python -m benchmarks.gpu`: what only a GPU can show, in one command (docs/gpu.md)."""
