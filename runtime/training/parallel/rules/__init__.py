"""How each operator is shared out among workers."""
