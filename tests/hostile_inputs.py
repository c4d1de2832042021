"""Inputs that somebody made to stop an audit, and the process that reads them all.

Run as a program it reads every one, within limits of time and memory, beside a good plugin, and
prints what came of each::

    python hostile_inputs.py FOLDER
"""

import bz2
import contextlib
import gzip
import importlib
import importlib.machinery
import io
import json
import lzma
import os
import resource
import signal
import socket
import struct
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs

from megatron_seams.base.toml import with_lines
from megatron_seams.errors import Refusal, SeamsError
from megatron_seams.governance.codeowners import read_codeowners
from megatron_seams.governance.ownership import seam_folders
from megatron_seams.governance.workspace import read_workspace
from megatron_seams.planning.environment import read_environment
from megatron_seams.recipes.hf_config import read_hf_config
from megatron_seams.recipes.recipe import load_recipe
from megatron_seams.records.proof import read_proof
from megatron_seams.records.receipt import read_receipt
from megatron_seams.seams.discovery import Discovery, discover
from megatron_seams.seams.source_trees import discover_in
from seam_support import install_plugin, manifest_table, source_plugin, toml

#: What one input may take: seconds by the clock of a busy machine, and the address space of the
#: process that reads them all, in bytes.
SECONDS: Final = 20
MEMORY: Final = 1536 * 1024 * 1024

KIB, MIB = 1024, 1024 * 1024
DEEP = "[" * 200_000


@attrs.frozen(kw_only=True)
class Input:
    """One input.

    Attributes:
        make: Writes it into a folder, and gives its place where that is another.
        read: Reads it, and gives the codes of the faults that are found.
        codes: The codes that are expected.
        finder: What stands first among the finders of imports meanwhile.
    """

    make: Callable[[Path], Path | None]
    read: Callable[[Path], list[str]]
    codes: tuple[str, ...]
    finder: Any = None


INPUTS: dict[str, Input] = {}


def hostile(
    read: Callable[[Path], list[str]], *codes: str, finder: Any = None
) -> Callable[[Callable[[Path], Path | None]], Callable[[Path], Path | None]]:
    """Register what a function writes."""

    def register(make: Callable[[Path], Path | None]) -> Callable[[Path], Path | None]:
        name = make.__name__.strip("_")
        assert name not in INPUTS
        INPUTS[name] = Input(make=make, read=read, codes=codes, finder=finder)
        return make

    return register


# --- how they are read ------------------------------------------------------------------------


def _codes(found: Discovery) -> list[str]:
    """The codes of the faults that are about anything but the good plugin, which is there."""
    assert [seam.name for seam in found.seams if seam.name == "sound"] == ["sound"], found
    assert not [one for one in found.broken if one.name == "sound"]
    with_lines(found.findings)
    for finding in found.findings:
        assert len(str(finding)) < 4000
    return sorted({finding.code for finding in found.findings})


def installed(_: Path) -> list[str]:
    """What an audit of the environment finds."""
    return _codes(discover())


def tree(folder: Path) -> list[str]:
    """What an audit of source trees finds."""
    good = folder.parent / f"{folder.name}-good"
    source_plugin(good, "acme-sound", {"acme_sound": manifest_table("sound", "family_sound")})
    seam_folders(folder)
    return _codes(discover_in([good, folder]))


def wheel(file: Path) -> list[str]:
    """What an audit of wheels finds."""
    good = file.with_name("good.whl")
    site = file.parent / "good-files"
    install_plugin(site, "acme-sound", {"acme_sound": manifest_table("sound", "family_sound")})
    with zipfile.ZipFile(good, "w") as archive:
        for part in sorted(site.rglob("*")):
            archive.write(part, part.relative_to(site).as_posix())
    return _codes(discover_in([good, file]))


def megatron(path: Path) -> list[str]:
    """What a plan against a Megatron says of it, and of the plugins beside it."""
    found = read_environment(path)
    assert "sound" in [seam.name for seam in found.discovery.seams]
    return sorted({fault.code for fault in found.faults})


def raising(read: Callable[[Path], object]) -> Callable[[Path], list[str]]:
    """What a reader of one file refuses."""

    def codes(path: Path) -> list[str]:
        read(path)
        return _codes(discover())

    return codes


# --- what is installed ------------------------------------------------------------------------


def plugin(site: Path, **keys: Any) -> Path:
    """A plugin ``bad`` that is sound so far; gives its ``.dist-info``."""
    return install_plugin(site, "acme-bad", {"acme_bad": manifest_table("bad", "bad", **keys)})


def manifest(site: Path, data: bytes) -> None:
    install_plugin(site, "acme-bad", {"acme_bad": data}, entry_points={"bad": "acme_bad"})


@hostile(installed, "SEAM-D04")
def range_of_5000_digits(site: Path) -> None:
    plugin(site, requires=f">=0.{'9' * 5000}")


@hostile(installed, "SEAM-D04")
def range_of_4000_digits(site: Path) -> None:
    plugin(site, requires=f">=0.{'9' * 4000}")


@hostile(installed, "SEAM-D04")
def range_of_10000_parts(site: Path) -> None:
    plugin(site, requires=",".join([">=0.1"] * 10_000))


@hostile(installed, "SEAM-D04")
def range_that_is_empty(site: Path) -> None:
    plugin(site, requires="")


@hostile(installed)
def direct_url_of_brackets(site: Path) -> None:
    (plugin(site) / "direct_url.json").write_text(DEEP)


@hostile(installed)
def direct_url_with_a_nul(site: Path) -> None:
    record = {"url": "file:///a%00b", "dir_info": {"editable": True}}
    (plugin(site) / "direct_url.json").write_text(json.dumps(record))


@hostile(installed)
def direct_url_that_is_a_list(site: Path) -> None:
    (plugin(site) / "direct_url.json").write_text("[1]")


@hostile(installed)
def direct_url_that_is_a_pipe(site: Path) -> None:
    os.mkfifo(plugin(site) / "direct_url.json")


@hostile(installed, "SEAM-D01")
def entry_points_that_are_a_pipe(site: Path) -> None:
    info = plugin(site)
    (info / "entry_points.txt").unlink()
    os.mkfifo(info / "entry_points.txt")


@hostile(installed, "SEAM-D01")
def entry_points_that_are_a_device(site: Path) -> None:
    info = plugin(site)
    (info / "entry_points.txt").unlink()
    (info / "entry_points.txt").symlink_to("/dev/zero")


@hostile(installed, "SEAM-D01")
def entry_points_of_a_terabyte(site: Path) -> None:
    info = plugin(site)
    os.truncate(info / "entry_points.txt", 1 << 40)


@hostile(installed, "SEAM-D01")
def entry_points_by_the_thousand(site: Path) -> None:
    info = plugin(site)
    lines = "".join(f"s{number} = acme_bad\n" for number in range(50_000))
    (info / "entry_points.txt").write_text(f"[megatron_seams]\n{lines}")


@hostile(installed, "SEAM-D01")
def entry_points_with_colons(site: Path) -> None:
    (plugin(site) / "entry_points.txt").write_text("[megatron_seams]\nbad: acme_bad\n")


@hostile(installed, "SEAM-D01")
def entry_points_in_no_encoding(site: Path) -> None:
    (plugin(site) / "entry_points.txt").write_bytes(b"[megatron_seams]\nb\xff = acme_bad\n")


@hostile(installed, "SEAM-D01")
def entry_point_with_a_name_of_100_kib(site: Path) -> None:
    info = plugin(site)
    (info / "entry_points.txt").write_text(f"[megatron_seams]\nbad = {'a' * 100 * KIB}\n")


@hostile(installed, "SEAM-D01")
def entry_point_4000_folders_deep(site: Path) -> None:
    info = plugin(site)
    (info / "entry_points.txt").write_text(f"[megatron_seams]\nbad = acme_bad{'.a' * 4000}\n")


@hostile(installed, "SEAM-D01")
def metadata_that_is_a_pipe(site: Path) -> None:
    info = plugin(site)
    (info / "METADATA").unlink()
    os.mkfifo(info / "METADATA")


@hostile(installed, "SEAM-D01")
def metadata_in_no_encoding(site: Path) -> None:
    (plugin(site) / "METADATA").write_bytes(b"Name: acme-\xff\nVersion: 1.0\n")


@hostile(installed, "SEAM-D01")
def metadata_with_a_name_of_a_mebibyte(site: Path) -> None:
    (plugin(site) / "METADATA").write_text(f"Name: {'a' * MIB}\nVersion: 1.0\n")


@hostile(installed)
def record_that_is_a_pipe(site: Path) -> None:
    info = plugin(site)
    (info / "RECORD").unlink()
    os.mkfifo(info / "RECORD")


@hostile(installed, "SEAM-D02")
def manifest_that_is_a_pipe(site: Path) -> None:
    plugin(site)
    (site / "acme_bad" / "seam.toml").unlink()
    os.mkfifo(site / "acme_bad" / "seam.toml")


@hostile(installed, "SEAM-D02")
def manifest_that_is_a_socket(site: Path) -> None:
    plugin(site)
    (site / "acme_bad" / "seam.toml").unlink()
    here = Path.cwd()
    os.chdir(site / "acme_bad")  # the path of a socket has a hundred characters at most
    socket.socket(socket.AF_UNIX).bind("seam.toml")
    os.chdir(here)


@hostile(installed, "SEAM-D03")
def manifest_of_a_terabyte(site: Path) -> None:
    plugin(site)
    os.truncate(site / "acme_bad" / "seam.toml", 1 << 40)


@hostile(installed, "SEAM-D04")
def manifest_of_7000_unknown_keys(site: Path) -> None:
    manifest(site, "".join(f"k{number}=1\n" for number in range(7000)).encode())


@hostile(installed, "SEAM-D03")
def manifest_with_a_key_of_30000_parts(site: Path) -> None:
    manifest(site, b"a." * 30_000 + b"a = 1\n")


@hostile(installed, "SEAM-D03")
def manifest_of_brackets(site: Path) -> None:
    manifest(site, b"a = " + DEEP.encode()[: 60 * KIB])


@hostile(installed, "SEAM-D04")
def manifest_with_tables_nested_300_deep(site: Path) -> None:
    manifest(site, b"a = " + b"{a = " * 300 + b"1" + b"}" * 300)


@hostile(installed, "SEAM-D04")
def manifest_with_a_number_of_50000_digits(site: Path) -> None:
    manifest(site, b"schema = 0x" + b"f" * 50_000)


@hostile(installed, "SEAM-D04")
def option_with_a_type_of_10000_brackets(site: Path) -> None:
    table = manifest_table("bad", "bad")
    table["options"] = {"a": {"type": "list[" * 10_000, "summary": "One."}}
    manifest(site, toml(table).encode())


@hostile(installed)
def manifest_with_a_byte_order_mark(site: Path) -> None:
    manifest(site, b"\xef\xbb\xbf" + toml(manifest_table("bad", "bad")).encode())


@hostile(installed)
def leftovers_of_a_removal(site: Path) -> None:
    info = plugin(site)
    info.rename(site / "~cme_bad-1.0.dist-info")
    plugin(site)


@hostile(installed, "SEAM-D06")
def two_records_of_one_distribution(site: Path) -> None:
    plugin(site).rename(site / "acme_bad-0.9.dist-info")
    plugin(site)


@hostile(installed, "SEAM-D01")
def an_empty_record_in_an_earlier_folder(site: Path) -> None:
    plugin(site)
    earlier = site / "earlier"
    (earlier / "acme_bad-0.9.dist-info").mkdir(parents=True)
    sys.path.insert(0, str(earlier))


@hostile(installed, "SEAM-D01", "SEAM-D02")
def a_stale_record_in_an_earlier_folder(site: Path) -> None:
    plugin(site)
    earlier = site / "earlier"
    points = {"bad_old": "acme_bad_old"}
    install_plugin(earlier, "acme-bad", {}, version="0.9", entry_points=points)
    sys.path.insert(0, str(earlier))


@hostile(installed)
def a_file_name_in_no_encoding(site: Path) -> None:
    plugin(site)
    Path(os.fsdecode(os.fsencode(site / "acme_bad") + b"/\xff\xfe.py")).touch()
    Path(os.fsdecode(os.fsencode(site) + b"/\xff-1.0.dist-info")).mkdir()


@hostile(installed, "SEAM-D02")
def a_circle_of_links(site: Path) -> None:
    plugin(site)
    file = site / "acme_bad" / "seam.toml"
    file.unlink()
    file.symlink_to(file)


class _Raising:
    """A finder of which everything that may raise does."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "acme_bad":
            raise SystemError(name)

    def find_distributions(self, _: object) -> Iterator[object]:
        yield from ()
        raise RuntimeError


@hostile(installed, "SEAM-D01", "SEAM-D03", finder=_Raising())
def a_finder_that_raises(site: Path) -> None:
    plugin(site)


class _Odd:
    """A finder whose specifications are none."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec

    def find_spec(self, name: str, *_: object) -> Any:
        return self.spec if name == "acme_bad" else None


class _Locations:
    def __iter__(self) -> Iterator[str]:
        raise KeyError

    def __bool__(self) -> bool:
        return True


def _spec(locations: Any) -> importlib.machinery.ModuleSpec:
    spec = importlib.machinery.ModuleSpec("acme_bad", None)
    spec.submodule_search_locations = locations
    return spec


@hostile(installed, "SEAM-D03", finder=_Odd(object()))
def a_specification_that_is_an_object(site: Path) -> None:
    plugin(site)


@hostile(installed, "SEAM-D03", finder=_Odd(_spec(_Locations())))
def a_specification_whose_places_raise(site: Path) -> None:
    plugin(site)


@hostile(installed, "SEAM-D03", finder=_Odd(_spec([3])))
def a_specification_whose_place_is_a_number(site: Path) -> None:
    plugin(site)


@hostile(installed, "SEAM-D03", finder=_Odd(_spec(["a\0b"])))
def a_specification_whose_place_has_a_nul(site: Path) -> None:
    plugin(site)


class _Distribution:
    """A distribution without anything that one has."""

    def locate_file(self, path: str) -> str:
        raise KeyError(path)


class _OfOdd(_Odd):
    def find_distributions(self, _: object) -> list[object]:
        return [_Distribution()]


@hostile(installed, "SEAM-D01", finder=_OfOdd(None))
def a_distribution_that_raises(site: Path) -> None:
    plugin(site)


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


# --- Megatrons --------------------------------------------------------------------------------

VERSION = "MAJOR = 0\nMINOR = 19\nPATCH = 2\nPRE_RELEASE = ''\n"
SYMBOLS = "core/models/hybrid/hybrid_layer_allocation.py"


def checkout(folder: Path, **files: str) -> Path:
    """A checkout with its version, and other files by path."""
    for path, text in {"core/package_info.py": VERSION, **files}.items():
        file = folder / "megatron" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


@hostile(megatron, "SEAM-S02")
def version_of_5000_digits(folder: Path) -> None:
    checkout(folder, **{"core/package_info.py": VERSION.replace("19", "9" * 5000)})


@hostile(megatron, "SEAM-S02")
def version_of_4000_digits(folder: Path) -> None:
    checkout(folder, **{"core/package_info.py": VERSION.replace("19", "9" * 4000), SYMBOLS: ""})


@hostile(megatron, "SEAM-S02")
def version_in_hexadecimal_digits(folder: Path) -> None:
    checkout(folder, **{"core/package_info.py": VERSION.replace("19", f"0x{'f' * 9000}")})


@hostile(megatron, "SEAM-S02")
def expression_nested_900_deep(folder: Path) -> None:
    checkout(folder, **{SYMBOLS: "x = " + "-" * 900 + "1\n"})


@hostile(megatron, "SEAM-S02")
def sum_of_100000_parts(folder: Path) -> None:
    checkout(folder, **{SYMBOLS: "x = " + "1+" * 100_000 + "1\n"})


@hostile(megatron, "SEAM-S02")
def brackets_of_100000(folder: Path) -> None:
    checkout(folder, **{SYMBOLS: DEEP})


@hostile(megatron, "SEAM-S02")
def source_file_of_a_terabyte(folder: Path) -> None:
    checkout(folder, **{SYMBOLS: ""})
    os.truncate(folder / "megatron" / SYMBOLS, 1 << 40)


@hostile(megatron, "SEAM-S02")
def source_file_that_is_a_pipe(folder: Path) -> None:
    checkout(folder)
    (folder / "megatron" / SYMBOLS).parent.mkdir(parents=True)
    os.mkfifo(folder / "megatron" / SYMBOLS)


@hostile(megatron, "SEAM-S02")
def source_file_with_a_nul(folder: Path) -> None:
    checkout(folder, **{SYMBOLS: "x = 1\0\n"})


@hostile(megatron, "SEAM-S02")
def source_names_of_500_kib(folder: Path) -> None:
    checkout(folder, **{SYMBOLS: f"class {'S' * 500 * KIB}:\n    {'M' * 400 * KIB} = 'M'\n"})


@hostile(megatron, "SEAM-S01")
def megatron_that_is_a_pipe(path: Path) -> None:
    os.mkfifo(path)


@hostile(megatron, "SEAM-S01")
def megatron_with_a_name_of_5000_characters(path: Path) -> Path:
    return path / ("m" * 5000)


@hostile(megatron, "SEAM-S01")
def megatron_wheel_with_a_broken_list(path: Path) -> None:
    wheel_with_a_broken_list(path)


def sdist(path: Path, opened: Callable[[Path], Any] = gzip.open, entries: Any = ()) -> None:
    """An sdist of a megatron-core, with further entries before it."""
    with opened(path) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        for entry, data in entries:
            archive.addfile(entry, data)
        data = VERSION.encode()
        entry = tarfile.TarInfo("megatron_core-0.19.2/megatron/core/package_info.py")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))


def writing(module: Any) -> Callable[[Path], Any]:
    return lambda path: module.open(path, "wb")


@hostile(megatron, "SEAM-S01")
def sdist_that_is_cut(path: Path) -> None:
    sdist(path, writing(gzip))
    path.write_bytes(path.read_bytes()[:60])


@hostile(megatron, "SEAM-S01")
def sdist_with_damaged_lzma(path: Path) -> None:
    sdist(path, writing(lzma))
    data = bytearray(path.read_bytes())
    data[40:80] = b"\xff" * 40
    path.write_bytes(data)


@hostile(megatron, "SEAM-S01")
def sdist_with_damaged_bzip2(path: Path) -> None:
    sdist(path, writing(bz2))
    data = bytearray(path.read_bytes())
    data[40:80] = b"\xff" * 40
    path.write_bytes(data)


class Zeros(io.RawIOBase):
    """That many zeros."""

    def __init__(self, count: int) -> None:
        self.left = count

    def read(self, size: int = -1) -> bytes:
        size = min(size, self.left)
        self.left -= size
        return bytes(size)


def fast(path: Path) -> Any:
    return gzip.open(path, "wb", compresslevel=1)


@hostile(megatron, "SEAM-S01")
def sdist_that_unpacks_to_a_gigabyte(path: Path) -> None:
    entry = tarfile.TarInfo("megatron_core-0.19.2/megatron/zeros.bin")
    entry.size = 1 << 30
    sdist(path, fast, [(entry, Zeros(entry.size))])


@hostile(megatron, "SEAM-S01")
def sdist_with_a_source_of_64_mib(path: Path) -> None:
    entry = tarfile.TarInfo("megatron_core-0.19.2/megatron/core/zeros.py")
    entry.size = 64 * MIB
    sdist(path, fast, [(entry, Zeros(entry.size))])


@hostile(megatron, "SEAM-S01")
def sdist_with_a_pax_header_of_64_mib(path: Path) -> None:
    entry = tarfile.TarInfo("pax")
    entry.type, entry.size = tarfile.XHDTYPE, 64 * MIB
    sdist(path, fast, [(entry, Zeros(entry.size))])


@hostile(megatron, "SEAM-S01")
def sdist_with_a_damaged_pax_header(path: Path) -> None:
    data = b"9999999999999999999999999999 path=a\n" * 20
    entry = tarfile.TarInfo("pax")
    entry.type, entry.size = tarfile.XHDTYPE, len(data)
    sdist(path, fast, [(entry, io.BytesIO(data))])


@hostile(megatron, "SEAM-S01")
def sdist_with_a_sparse_source_of_a_terabyte(path: Path) -> None:
    header = b"".join(
        f"{len(line) + 3 if len(line) < 97 else len(line) + 4} {line}".encode()
        for line in (
            "GNU.sparse.major=0\n",
            "GNU.sparse.minor=1\n",
            f"GNU.sparse.size={1 << 40}\n",
            "GNU.sparse.numblocks=1\n",
            "GNU.sparse.map=0,1\n",
        )
    )
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = tarfile.XHDTYPE, len(header)
    entry = tarfile.TarInfo("megatron_core-0.19.2/megatron/core/sparse.py")
    entry.size = 1
    sdist(path, fast, [(pax, io.BytesIO(header)), (entry, io.BytesIO(b"1"))])


# --- other files ------------------------------------------------------------------------------


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


# --- the process ------------------------------------------------------------------------------


def _too_long(*_: object) -> None:
    message = f"longer than {SECONDS} s"
    raise TimeoutError(message)


@contextlib.contextmanager
def _first(finder: Any) -> Iterator[None]:
    path, finders = [*sys.path], [*sys.meta_path]
    if finder is not None:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.path[:], sys.meta_path[:] = path, finders
        sys.path_importer_cache.clear()


def run(name: str, folder: Path) -> dict[str, Any]:
    """Write an input, and read it."""
    case, site = INPUTS[name], folder / "site"
    install_plugin(site, "acme-sound", {"acme_sound": manifest_table("sound", "family_sound")})
    with _first(case.finder):
        sys.path.insert(0, str(site))
        importlib.invalidate_caches()
        place = site if case.read is installed else folder / "input"
        place = case.make(place) or place
        started = time.monotonic()
        signal.alarm(SECONDS)
        try:
            codes = case.read(place)
        except Refusal as refusal:
            codes = sorted({reason.code for reason in refusal.reasons})
        except SeamsError as fault:
            codes = [fault.code]
        except Exception as error:  # noqa: BLE001 - a failure of the test, by its name
            codes = [f"{type(error).__name__}: {error!s:.300}"]
        finally:
            signal.alarm(0)
        seconds = time.monotonic() - started
        listed = [seam.name for seam in discover().seams]
    return {"codes": codes, "seconds": seconds, "good": "sound" in listed}


def main(folder: Path) -> None:
    """Read every input, and print the results as JSON, one a line."""
    signal.signal(signal.SIGALRM, _too_long)
    sys.path[:] = [entry for entry in sys.path if entry]
    for number, name in enumerate(INPUTS):
        inner = folder / str(number)
        inner.mkdir()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
        print(json.dumps({"name": name, **run(name, inner)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
