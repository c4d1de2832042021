"""A seam that keeps every rule of the conformance kit."""
