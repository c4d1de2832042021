"""The operator: its contract, its backends, and the choice between them."""
