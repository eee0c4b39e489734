"""The driver: reads the request, runs the pipeline, judges the result."""
