"""Who builds linears, norms and attention: Transformer Engine, or plain torch without it."""
