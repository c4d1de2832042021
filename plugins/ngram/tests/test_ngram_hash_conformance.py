"""The conformance kit, on the seam ``ngram_hash``."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from megatron_seams.runtime.conformance import FeatureConformance

pytestmark = [pytest.mark.megatron, pytest.mark.release]


class TestNgramHash(FeatureConformance):
    seam = "ngram_hash"
    options: ClassVar[Mapping[str, Any]] = {"heads": 2, "table-rows": 100, "width": 16}
