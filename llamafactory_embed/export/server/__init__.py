"""Whether a running server embeds as the checkpoint does, and what it does otherwise (docs/serve.md)."""
