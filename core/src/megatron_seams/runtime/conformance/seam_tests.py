"""The tests of ``pytest --seam NAME``; the class that does not fit the seam is left out."""

import pytest

from megatron_seams.runtime.conformance.suite import FeatureConformance, LayerConformance

#: Upstream's and torch's, hundreds of them.
pytestmark = pytest.mark.filterwarnings("ignore")


class TestLayer(LayerConformance):
    """The seam that ``--seam`` names, if it builds layers."""


class TestFeature(FeatureConformance):
    """The seam that ``--seam`` names, if it is a feature."""
