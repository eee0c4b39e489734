"""Core ML's `.mlpackage`, written through coremltools' MIL builder."""
