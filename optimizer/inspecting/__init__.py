"""What `optimize inspect` says of a model: rows of layers, totals, memory, energy, times, and two models side by side."""
