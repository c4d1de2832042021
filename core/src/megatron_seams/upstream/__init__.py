"""Upstream: what a given Megatron-Core builds and which settings it has, read from its source."""
