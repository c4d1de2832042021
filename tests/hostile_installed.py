"""Hostile inputs: what is installed."""

import importlib
import importlib.machinery
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostile import DEEP, KIB, MIB, hostile, installed, manifest, plugin
from seam_support import install_plugin, manifest_table, toml


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
