"""The recurrence in CUDA."""
