"""Arrays: few values for many weights."""
