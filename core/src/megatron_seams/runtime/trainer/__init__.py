"""A run under upstream's own trainer, held to a receipt."""
