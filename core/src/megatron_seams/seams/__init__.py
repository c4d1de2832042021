"""What is declared and installed: manifests, and where seams are found."""
