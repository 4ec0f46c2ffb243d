"""Pages that are one file: they need no other and no network, and are read in light and in dark."""
