"""What is done to a model as it is read, before any pass: old operators, local functions, exporters' traces."""
