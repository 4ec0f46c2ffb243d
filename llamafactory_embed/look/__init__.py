"""What an embedder does with texts, to look at: rankings, neighbours, maps, and a tab of LLaMA Board."""
