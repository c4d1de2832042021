"""A run under upstream's own trainer, checked against a receipt."""
