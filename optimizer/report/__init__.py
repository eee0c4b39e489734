"""The run record, and how it is shown."""
