"""What a step costs as ids and fields grow: one part of a model alone, in a process of its own."""
