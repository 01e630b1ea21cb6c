"""Kernels of our own, and when they run."""
