"""What `optimize simulate` says of machines that nobody has: time per step from the cost model, and stragglers."""
