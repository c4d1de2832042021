"""A test seam: a feature at the residual of named layers."""
