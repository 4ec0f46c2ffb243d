"""`stage: mntp`: masked next-token prediction, which makes a decoder bidirectional (LLM2Vec)."""
