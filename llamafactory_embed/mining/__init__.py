"""Tools that prepare training data: mine hard negatives, and remove queries of test sets."""
