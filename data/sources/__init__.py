"""Logs that can be turned into an event store, one file each."""
