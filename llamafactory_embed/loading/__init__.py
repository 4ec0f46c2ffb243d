"""From a checkpoint or a recipe to a model with its tokenizer and its record: what counts is decided here."""
