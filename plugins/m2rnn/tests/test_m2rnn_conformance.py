"""The conformance kit, on the seam of this folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

import megatron_releases
from megatron_seams.runtime.conformance import LayerConformance

pytestmark = [pytest.mark.megatron, pytest.mark.release]


class TestM2RNN(LayerConformance):
    seam = "m2rnn"
    options: ClassVar[Mapping[str, Any]] = {"K": 8, "V": 8, "heads": 4}

    @pytest.fixture(scope="class")
    @classmethod
    def megatrons(cls) -> Sequence[Path]:
        """Every release of the manifest's range."""
        return [megatron_releases.wheel(release) for release in ("0.17", "0.18", "0.19")]
