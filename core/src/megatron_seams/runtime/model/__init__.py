"""A plan as a running model: upstream's own, with the seams' layers and features in it."""
