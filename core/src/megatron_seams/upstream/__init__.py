"""What one Megatron-Core builds, read from its source and never imported."""
