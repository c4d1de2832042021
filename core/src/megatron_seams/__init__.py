"""megatron-seams: custom blocks for Megatron-Core hybrid models, without a fork.

Two halves, and the arrow between them points one way. The *planner* (everything but
:mod:`megatron_seams.runtime`) turns a layer pattern into a plan and imports neither torch nor
Megatron. The *runtime* turns a plan into modules.
"""

__version__ = "0.1.0"
