"""The seam ``ngram_hash``: a hashed n-gram embedding, added to the word embedding.

Importing this package imports neither torch nor Megatron, and neither does
:mod:`megatron_seams_ngram.hash.options`.
"""
