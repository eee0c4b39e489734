"""Which channels stand and fall together, and how they are removed."""
