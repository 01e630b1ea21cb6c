"""What search, attention and gradients do: sums over batches, and statistics of them."""
