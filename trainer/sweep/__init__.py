"""Tables of trainings: rows times seeds, each cell a run of its own; resumable, and compared."""
