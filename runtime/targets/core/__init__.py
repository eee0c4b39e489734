"""The machinery of targets: what a target is, and the registry."""
