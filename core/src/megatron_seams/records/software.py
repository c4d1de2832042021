"""The versions of what else decides a run's numbers: information, which no plan depends on."""

import importlib.metadata
from typing import Final

from megatron_seams._version import __version__

#: Distributions that compute, besides Megatron-Core and the seams.
COMPUTING: Final = ("torch", "transformer-engine", "mamba-ssm")


def software() -> dict[str, str | None]:
    """Distribution -> its installed version, None where it is not installed."""
    return {"megatron-seams": __version__, **{name: _version(name) for name in COMPUTING}}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except Exception:  # noqa: BLE001 - not installed, or with metadata that cannot be read
        return None
