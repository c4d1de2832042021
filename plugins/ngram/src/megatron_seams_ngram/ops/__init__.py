"""The operators: hash the n-gram at each position, and look rows up, with their gradient."""
