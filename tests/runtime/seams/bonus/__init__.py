"""A test seam: a feature at the embedding."""
