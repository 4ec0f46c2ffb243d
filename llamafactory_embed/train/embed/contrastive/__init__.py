"""`stage: contrastive`: train an embedder on rows of query, positive and negatives."""
