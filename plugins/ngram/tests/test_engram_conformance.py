"""The conformance kit, on the seam ``engram``."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from megatron_seams.runtime.conformance import FeatureConformance

pytestmark = [pytest.mark.megatron, pytest.mark.release]


class TestEngram(FeatureConformance):
    seam = "engram"
    options: ClassVar[Mapping[str, Any]] = {"heads": 2, "table-rows": 100, "width": 16}
