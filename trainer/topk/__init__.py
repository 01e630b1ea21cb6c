"""Ranking the whole catalogue for each user: data, training, exact metrics, comparison."""
