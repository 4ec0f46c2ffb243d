"""LLaMA Board's panels: a stage's options dataclass as a form, and what the form says as option values.

Nothing here is written for one option, and nothing here knows the host's web code: that is `host/board.py`.
"""
