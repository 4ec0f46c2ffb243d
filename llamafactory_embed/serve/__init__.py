"""Trained models that answer requests: chat and lm-eval. Nothing here needs the code that trains."""
