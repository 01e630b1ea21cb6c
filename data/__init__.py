"""Event logs in, batches out."""
