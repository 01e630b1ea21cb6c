"""Plans for clusters that are not at hand: what fits, how fast, why."""
