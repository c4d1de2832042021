"""The constants of the hash tables, as plain integers."""
