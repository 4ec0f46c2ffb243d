"""A checkpoint as a folder that other programs load: sentence-transformers and the servers that read its layout, an
adapter alone, LLM2Vec."""
