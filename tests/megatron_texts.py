"""A Megatron's text as a value: taken from a wheel, changed and written; and the surface of one."""

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from megatron_seams.cli import cli

VERSION_FILE = "megatron/core/package_info.py"
#: Allocation module and stack, the newest home first.
HOMES = (
    ("models/hybrid/hybrid_layer_allocation.py", "models/hybrid/hybrid_block.py"),
    ("ssm/mamba_hybrid_layer_allocation.py", "ssm/mamba_block.py"),
)


def home(texts: Mapping[str, str]) -> tuple[str, str]:
    """Where the symbols and the stack are among the files of ``texts``."""
    for allocation, block in HOMES:
        if f"megatron/core/{allocation}" in texts:
            return f"megatron/core/{allocation}", f"megatron/core/{block}"
    raise AssertionError(sorted(texts))


def texts_of(wheel: Path) -> dict[str, str]:
    """The files of a wheel that a surface is read from, and the metadata beside them."""
    known = {f"megatron/core/{name}" for pair in HOMES for name in pair} | {VERSION_FILE}
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: archive.read(name).decode()
            for name in archive.namelist()
            if name in known or name.endswith(".dist-info/METADATA")
        }


def write_wheel(path: Path, texts: Mapping[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    return path


def write_folder(path: Path, texts: Mapping[str, str]) -> Path:
    for name, text in texts.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def write_sdist(path: Path, texts: Mapping[str, str]) -> Path:
    """An archive with one top folder; what a wheel calls METADATA an sdist calls PKG-INFO."""
    with tarfile.open(path, "w:gz") as archive:
        for name, text in texts.items():
            inner = "PKG-INFO" if name.endswith("/METADATA") else name
            member = tarfile.TarInfo(f"megatron_core-1.0/{inner}")
            data = text.encode()
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def described(path: Path) -> dict[str, Any]:
    """The output of ``surface --json`` without the place of the source."""
    done = CliRunner().invoke(cli, ["surface", str(path), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)["surface"]
    del found["origin"]
    return found
