"""A test seam: a recurrent mixer inside upstream's MambaLayer."""
