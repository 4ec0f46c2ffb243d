"""`dedup`: take training queries out that are, but for a few letters, queries of a test set."""
