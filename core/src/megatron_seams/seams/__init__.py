"""Seams: what their manifests may say, and where they are found."""
