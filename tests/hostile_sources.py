"""Hostile inputs: source trees, wheels, and the files of a workspace."""

import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

from hostile import DEEP, MIB, hostile, plugin, raising, tree, wheel
from megatron_seams.governance.codeowners import read_codeowners
from megatron_seams.governance.workspace import read_workspace
from megatron_seams.recipes.hf_config import read_hf_config
from megatron_seams.recipes.recipe import load_recipe
from megatron_seams.records.proof import KIND, SCHEMA, read_proof
from megatron_seams.records.receipt import read_receipt
from seam_support import manifest_table, source_plugin

# --- source trees -----------------------------------------------------------------------------


def source(folder: Path) -> Path:
    return source_plugin(folder, "acme-bad", {"acme_bad": manifest_table("bad", "bad")})


@hostile(tree, "SEAM-D01")
def project_that_is_a_pipe(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "pyproject.toml")


@hostile(tree, "SEAM-D01")
def project_of_a_terabyte(folder: Path) -> None:
    source(folder)
    os.truncate(folder / "pyproject.toml", 1 << 40)


@hostile(tree)
def setup_that_is_a_pipe(folder: Path) -> None:
    source(folder)
    for name in ("setup.py", "setup.cfg"):
        os.mkfifo(folder / name)


@hostile(tree, "SEAM-D03")
def source_manifest_that_is_a_pipe(folder: Path) -> None:
    source(folder)
    file = folder / "src" / "acme_bad" / "seam.toml"
    file.unlink()
    os.mkfifo(file)


@hostile(tree, "SEAM-D03")
def source_manifest_that_leads_out(folder: Path) -> None:
    source(folder)
    file = folder / "src" / "acme_bad" / "seam.toml"
    file.unlink()
    file.symlink_to("/etc/passwd")


@hostile(tree)
def packages_with_pipes_and_files_of_a_terabyte(folder: Path) -> None:
    package = source(folder) / "src" / "acme_bad"
    os.mkfifo(package / "pipe.py")
    os.mkfifo(package / "setup.py")
    terabyte(package / "table.bin")


@hostile(tree, "SEAM-D02")
def project_whose_tables_are_numbers(folder: Path) -> None:
    folder.mkdir()
    text = '[project]\nname = "acme-bad"\nentry-points.megatron_seams.bad = "acme_bad"\n'
    (folder / "pyproject.toml").write_text(f"tool = 3\n{text}")


# --- wheels -----------------------------------------------------------------------------------


def packed(file: Path, *, method: int = zipfile.ZIP_DEFLATED, **more: bytes) -> Path:
    """A wheel of the plugin ``bad``."""
    site = file.with_suffix(".files")
    plugin(site)
    with zipfile.ZipFile(file, "w", method) as archive:
        for part in sorted(site.rglob("*")):
            archive.write(part, part.relative_to(site).as_posix())
        for name, data in more.items():
            archive.writestr(name, data)
    return file


@hostile(wheel, "SEAM-D03")
def wheel_that_is_cut(file: Path) -> None:
    packed(file).write_bytes(file.read_bytes()[:-40])


@hostile(wheel, "SEAM-D03")
def wheel_with_a_broken_list(file: Path) -> None:
    data = bytearray(packed(file).read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at : at + 46] = os.urandom(46)
    file.write_bytes(data)


@hostile(wheel, "SEAM-D03")
def wheel_with_broken_contents(file: Path) -> None:
    data = bytearray(packed(file).read_bytes())
    for at in range(len(data) - 60):
        if data[at : at + 4] == b"PK\x03\x04" and b"entry_points.txt" in data[at : at + 90]:
            data[at + 80 : at + 110] = b"\xff" * 30
    file.write_bytes(data)


@hostile(wheel, "SEAM-D01")
def wheel_compressed_by_lzma(file: Path) -> None:
    packed(file, method=zipfile.ZIP_LZMA)


@hostile(wheel, "SEAM-D03")
def wheel_whose_manifest_is_a_bomb(file: Path) -> None:
    site = file.with_suffix(".files")
    plugin(site)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in sorted(site.rglob("*")):
            if part.name != "seam.toml":
                archive.write(part, part.relative_to(site).as_posix())
        archive.writestr("acme_bad/seam.toml", b"#" * (300 * MIB))


@hostile(wheel, "SEAM-D03")
def wheel_with_a_list_of_a_gigabyte(file: Path) -> None:
    packed(file)
    with file.open("r+b") as stream:
        data = stream.read()
        stream.seek(data.rindex(b"PK\x05\x06") + 12)
        stream.write(struct.pack("<L", 1 << 30))


@hostile(wheel, "SEAM-D03")
def wheel_of_a_terabyte(file: Path) -> None:
    file.touch()
    os.truncate(file, 1 << 40)


# --- files ------------------------------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def brackets(path: Path) -> None:
    path.write_text(f"{'a = ' if path.suffix == '.toml' else ''}{DEEP}")


def named(path: Path, suffix: str) -> Path:
    return path.with_suffix(suffix)


for _what in (pipe, terabyte, brackets):
    for _kind, _suffix, _reader, _code in (
        ("recipe", ".toml", load_recipe, "SEAM-C01"),
        ("receipt", ".json", read_receipt, "SEAM-V01"),
        ("configuration", ".json", read_hf_config, "SEAM-C01"),
        ("codeowners", "", read_codeowners, "SEAM-O05"),
    ):
        if (_what, _kind) == (brackets, "codeowners"):
            continue

        def _make(path: Path, what: Any = _what, suffix: str = _suffix) -> Path:
            file = path.with_suffix(suffix)
            what(file)
            return file

        _make.__name__ = f"{_kind}_{_what.__name__}"
        hostile(raising(_reader), _code)(_make)


@hostile(raising(read_workspace), "SEAM-W01")
def workspace_of_a_terabyte(folder: Path) -> None:
    folder.mkdir()
    terabyte(folder / "pyproject.toml")


@hostile(raising(read_proof), "SEAM-G01")
def proof_that_is_a_pipe(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "proof.json")


@hostile(raising(read_proof), "SEAM-G01")
def proof_of_a_terabyte(folder: Path) -> None:
    (folder / "checkpoint").mkdir(parents=True)
    body = {"kind": KIND, "schema": SCHEMA, "megatron_core": "0.19.2", "settings": {}, "files": {}}
    (folder / "proof.json").write_text(json.dumps(body))
    terabyte(folder / "checkpoint" / "__0_0.distcp")
    os.mkfifo(folder / "checkpoint" / "pipe")
