"""A plan at toy width, trained for a few steps on a text."""
