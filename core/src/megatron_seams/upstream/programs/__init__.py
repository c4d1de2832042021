"""Upstream's own functions, followed on their source as far as values are known."""
