"""The commands of `optimize`: each reads its arguments, calls the driver, and prints."""
