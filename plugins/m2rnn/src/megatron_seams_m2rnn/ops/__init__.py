"""The recurrence: its equations, a plain reference, and the backends that compute it."""
