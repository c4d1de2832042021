"""N-gram enrichment for Megatron-Core hybrid models.

One distribution, one subpackage for each seam: :mod:`megatron_seams_ngram.hash` is the hashed
n-gram input embedding. What every n-gram seam needs lies here, beside them: the constants of the
hash tables (:mod:`~megatron_seams_ngram.tables.hash_tables`), the index rule
(:mod:`~megatron_seams_ngram.ops.indices`) and the document boundaries that its windows stop at
(:mod:`~megatron_seams_ngram.documents`).

Importing this package imports neither torch nor Megatron.
"""
