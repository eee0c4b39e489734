"""What lies beside a model for phones, whatever runs it: the description model.*.json, stored examples, a script that verifies them, and texts for
the application's developer. No target has this name.
"""
