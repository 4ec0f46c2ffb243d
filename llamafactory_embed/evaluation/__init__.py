"""Judging embedders."""
