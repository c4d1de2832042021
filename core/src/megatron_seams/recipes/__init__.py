"""Models as a user writes them: patterns, their dialects, and recipe files."""
