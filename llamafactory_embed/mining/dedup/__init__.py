"""`dedup`: remove training queries that are queries of a test set, apart from a few letters."""
