"""The recurrence in Triton."""
