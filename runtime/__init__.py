"""Everything that runs or builds a model. Only reads graphs; rewriting lives in `passes`."""
