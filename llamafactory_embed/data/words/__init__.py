"""Sentences whose words have labels: formats, reading, tokens of words."""
