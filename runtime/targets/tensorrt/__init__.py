"""The targets `tensorrt` and `tensorrt-rtx`, and what they alone use."""
