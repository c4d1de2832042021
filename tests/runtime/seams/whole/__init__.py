"""A test seam: a whole layer that may ride on any of three slots."""
