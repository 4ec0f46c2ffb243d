"""The quick start: a real embedder from a real language model on a CPU in minutes, without a model hub."""
