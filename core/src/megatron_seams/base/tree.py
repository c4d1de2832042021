"""Files of a source tree, without what was installed, built or hidden in it."""

import os
from collections.abc import Iterator
from pathlib import Path

_INSTALLED = frozenset({"__pycache__", "node_modules", "site-packages"})


def files_named(root: Path, name: str) -> Iterator[Path]:
    """Every file of that name below ``root``, in the order of their paths."""
    for file in files_below(root):
        if file.name == name:
            yield file


def files_below(root: Path) -> Iterator[Path]:
    """Every file below ``root``, in the order of their paths; no link to a folder is followed."""
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if _of_source(Path(folder) / name))
        yield from (Path(folder) / name for name in sorted(names))


def _of_source(folder: Path) -> bool:
    name = folder.name
    if name.startswith(".") or name.endswith((".egg-info", ".dist-info")) or name in _INSTALLED:
        return False
    # Inside a package they are names like any other.
    if name in ("build", "dist") and (folder.parent / "pyproject.toml").is_file():
        return False
    return not (folder / "pyvenv.cfg").is_file()
