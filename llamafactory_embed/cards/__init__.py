"""Model cards in the hub's format: the header that hubs read, and the sections that people read."""
