"""N-gram enrichment for Megatron-Core hybrid models.

One distribution, one subpackage for each seam: :mod:`megatron_seams_ngram.hash` is the hashed
n-gram input embedding, :mod:`megatron_seams_ngram.engram` the gated memory of chosen layers. Both
use the constants of the hash tables (:mod:`~megatron_seams_ngram.tables`), what runs on tensors
(:mod:`~megatron_seams_ngram.ops`) and the trainable tables themselves, with the model
(:mod:`~megatron_seams_ngram.ngram_tables`) or on the host (:mod:`~megatron_seams_ngram.host`).

Importing this package imports neither torch nor Megatron.
"""
