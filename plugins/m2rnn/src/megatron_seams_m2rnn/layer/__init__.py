"""The mixer around the recurrence, as upstream's Mamba layer takes it."""
