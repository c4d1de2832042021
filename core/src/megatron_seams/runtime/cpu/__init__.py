"""Megatron on machines without a GPU: one process, or several ranks over gloo."""
