"""The conformance kit, on the seam of this folder: without MIMO, and with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

import megatron_releases
from megatron_seams.runtime.conformance import LayerConformance

pytestmark = [pytest.mark.megatron, pytest.mark.release]


class TestMamba3(LayerConformance):
    seam = "mamba3"
    options: ClassVar[Mapping[str, Any]] = {
        "state-size": 8,
        "head-dim": 8,
        "mimo-rank": 2,
        "chunk-size": 4,
    }

    @pytest.fixture(scope="class")
    @classmethod
    def megatrons(cls) -> Sequence[Path]:
        """Every release of the manifest's range."""
        return [megatron_releases.wheel(release) for release in ("0.17", "0.18", "0.19")]
