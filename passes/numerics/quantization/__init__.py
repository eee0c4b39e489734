"""Arrays: scales, levels and rounding."""
