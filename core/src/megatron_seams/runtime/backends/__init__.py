"""The sources of linears, norms and attention: Transformer Engine, or plain torch without it."""
