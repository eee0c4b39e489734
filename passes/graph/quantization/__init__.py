"""Q/DQ pairs: finding them, writing them, and where targets want them."""
