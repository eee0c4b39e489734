"""Training in little memory: activations computed again."""
