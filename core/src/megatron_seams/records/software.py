"""The versions of what else decides a run's numbers: information, unless a workspace holds them.

No plan depends on them. A workspace's policy may name some of them (``hold-software``): a receipt
that is written there carries the names, and another version is then a difference like any other.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import importlib_metadata

from megatron_seams._version import __version__
from megatron_seams.base.files import read_file

#: The size of the largest receipt that is read. With a pattern's largest depth, 100 000 layers, one
#: has some 35 mebibytes.
MAX_BYTES: Final = 128 * 1024 * 1024
#: Distributions that compute, besides Megatron-Core and the seams.
COMPUTING: Final = ("torch", "transformer-engine", "mamba-ssm")
#: The distributions whose versions a receipt names, and a workspace may hold.
NAMED: Final = ("megatron-seams", *COMPUTING)
#: The key of a receipt with the names that it holds; absent where it holds none.
HELD: Final = "hold_software"


def software() -> dict[str, str | None]:
    """Distribution -> its installed version, None where it is not installed."""
    return {"megatron-seams": __version__, **{name: _version(name) for name in COMPUTING}}


def held_names(body: Mapping[str, Any], more: Iterable[str] = ()) -> tuple[str, ...]:
    """The distributions that a receipt holds, and more that are to be held, sorted."""
    return tuple(sorted({*body.get(HELD, ()), *more}))


def held_differences(
    names: Iterable[str], before: Mapping[str, str | None], now: Mapping[str, str | None]
) -> dict[str, tuple[str | None, str | None]]:
    """Distribution -> both versions, for those of these names that differ."""
    return {name: both for name, both in differing(before, now).items() if name in set(names)}


def software_since(receipt: Path) -> dict[str, tuple[str | None, str | None]]:
    """Distribution -> its version in a receipt that can be read, and here, where they differ."""
    written = json.loads(read_file(receipt, MAX_BYTES)).get("software", {})
    return differing(written, {**dict.fromkeys(written), **software()} if written else {})


def differing(
    before: Mapping[str, str | None], now: Mapping[str, str | None]
) -> dict[str, tuple[str | None, str | None]]:
    """Distribution -> both versions, where they differ."""
    return {
        name: (before.get(name), now.get(name))
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    }


def _version(name: str) -> str | None:
    try:
        return importlib_metadata.version(name)
    except Exception:  # noqa: BLE001 - not installed, or with metadata that cannot be read
        return None
