"""What search, attention, gradients and fields do: sums over batches, and statistics of them."""
