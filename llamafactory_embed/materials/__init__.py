"""The recipes and the bundled data, which a wheel carries and `llamafactory-embed init` writes into a folder."""
