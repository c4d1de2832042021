"""What runs on tensors: hashing positions, and looking rows up with their gradient."""
