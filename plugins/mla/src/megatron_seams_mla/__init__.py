"""Multi-latent attention for the hybrid stacks of Megatron-Core 0.17 and 0.18, which lack it.

From 0.19 on Megatron builds the layer itself and this seam is superseded: a model that was trained
with it continues natively from the same checkpoint.

Importing this package imports neither torch nor Megatron.
"""
