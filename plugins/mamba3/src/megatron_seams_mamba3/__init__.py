"""Mamba-3: a state space mixer with a trapezoidal step and a rotating state, SISO and MIMO.

The seam for ``mamba3`` blocks, after Lahoti, Li, Chen, Wang, Bick, Kolter, Dao and Gu, "Mamba-3:
Improved Sequence Modeling using State Space Principles", arXiv:2603.15569.
:mod:`megatron_seams_mamba3.ops.operator` has the equations.

Importing this package imports neither torch nor Megatron, and neither does
:mod:`megatron_seams_mamba3.options`.
"""
