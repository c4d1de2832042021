"""M²RNN: a recurrent mixer with a matrix-valued state and a non-linear transition.

The seam for ``recurrent`` blocks, after Mishra, Tan, Stoica, Gonzalez and Dao, "M²RNN: Non-Linear
RNNs with Matrix-Valued States for Scalable Language Modeling", arXiv:2603.14360. The letters in the
code are the paper's; :mod:`megatron_seams_m2rnn.ops.operator` has the equations.

Importing this package imports neither torch nor Megatron, and neither does
:mod:`megatron_seams_m2rnn.options`.
"""
