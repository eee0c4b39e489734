"""What Lathe builds for. One target per file; to add one, add a file with a registered class."""
