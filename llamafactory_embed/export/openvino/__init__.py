"""Checkpoints as OpenVINO graphs, for CPUs."""
