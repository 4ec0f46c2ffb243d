"""The console script `llamafactory-embed`."""


def main() -> None:
    """Entry point."""
