"""Hostile inputs: sources and archives of Megatron-Core."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile import DEEP, KIB, MIB, hostile, megatron
from hostile_sources import wheel_with_a_broken_list

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
