"""Embeddings over HTTP in OpenAI's format, with continuous batching (docs/serve.md)."""
