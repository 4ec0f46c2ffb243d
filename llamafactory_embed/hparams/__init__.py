"""Option dataclasses of our stages, one file a family."""

from .option import check_options, option


__all__ = ["check_options", "option"]
