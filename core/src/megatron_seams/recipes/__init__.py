"""What is asked for: patterns, their dialects, and recipe files."""
