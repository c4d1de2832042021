"""Who owns what, and the gate that holds a workspace to it."""
