"""Several checkpoints as one: averages and spherical interpolation of weights, adapters and poolers."""
