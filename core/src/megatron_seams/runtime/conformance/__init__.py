"""The conformance kit: the tests of every seam, which its author inherits or runs.

``pytest --seam NAME`` runs them for an installed seam. In a seam's own suite::

    from megatron_seams.runtime.conformance import LayerConformance


    class TestKda(LayerConformance):
        seam = "kda"
        options = {"head-dim": 16}

Importing this imports pytest and neither torch nor Megatron, which the tests do when they run.
"""

from megatron_seams.runtime.conformance.rules import RuleBroken
from megatron_seams.runtime.conformance.suite import (
    FeatureConformance,
    LayerConformance,
    SeamConformance,
)

__all__ = ["FeatureConformance", "LayerConformance", "RuleBroken", "SeamConformance"]
