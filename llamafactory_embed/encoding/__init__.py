"""Files of texts in, files of vectors out: streaming, and continued after an interruption."""
