"""Two models side by side: what is different in them, where their tensors part, and which layer is to blame."""
