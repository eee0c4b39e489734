"""Model files: reading, writing whole or not at all, and what they take and give."""
