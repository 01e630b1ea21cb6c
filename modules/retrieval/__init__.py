"""Models that rank the whole catalogue for a user: vectors of users and items, by dot product."""
