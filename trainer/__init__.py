"""Experiments, train loop, evaluation, checkpoints, report and command line."""
