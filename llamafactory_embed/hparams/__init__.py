"""Option dataclasses of our stages, one file a family."""

from .option import make_options, option


__all__ = ["make_options", "option"]
