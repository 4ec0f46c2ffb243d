"""Texts in, embeddings out: on one device or on several."""

from .encoder import Encoder as Encoder
