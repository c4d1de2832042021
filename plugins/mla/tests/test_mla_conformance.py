"""The conformance kit, on the seam of this folder."""

from collections.abc import Sequence
from pathlib import Path

import pytest

import megatron_releases
from megatron_seams.runtime.conformance import LayerConformance

pytestmark = [pytest.mark.megatron, pytest.mark.release]


class TestMLA(LayerConformance):
    seam = "mla"

    @pytest.fixture(scope="class")
    @classmethod
    def megatrons(cls) -> Sequence[Path]:
        """Every release of the manifest's range."""
        return [megatron_releases.wheel(release) for release in ("0.17", "0.18", "0.19")]
