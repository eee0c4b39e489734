"""Arrays: factors of lower rank."""
