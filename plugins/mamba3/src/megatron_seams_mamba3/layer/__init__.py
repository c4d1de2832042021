"""The mixer around the recurrence, for upstream's own Mamba layer."""
