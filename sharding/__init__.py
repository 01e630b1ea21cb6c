"""Choosing, printing and applying a sharding plan."""
