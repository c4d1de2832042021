"""The seam ``engram``: a gated n-gram memory at the residual of chosen layers.

After "Conditional Memory via Scalable Lookup" (arXiv:2601.07372). Importing this package imports
neither torch nor Megatron, and neither do :mod:`megatron_seams_ngram.engram.options` and
:mod:`megatron_seams_ngram.engram.compression`.
"""
