"""Launchers that need more than a command line: Ray Train."""
