"""Data tools around training: hard negatives for a data set, and duplicates of test queries taken out of one."""
