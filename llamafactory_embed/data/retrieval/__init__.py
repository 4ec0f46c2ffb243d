"""Retrieval data: rows of query, positives and negatives, read from many formats and drawn into batches by task."""
