"""The recurrence in C++."""
