"""`stage: tdro`: find out which tasks a model has most to learn from, as weights for `stage: contrastive`."""
