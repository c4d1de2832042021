"""Distributions are listed with name, version and entry points; a damaged one hides no other."""

import importlib.metadata
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import importlib_metadata
import pytest

from megatron_seams.base.distributions import Installed, installed, named
from seam_support import install_plugin, manifest_table

GROUP = "megatron_seams"


class OfTexts(importlib_metadata.Distribution):
    """A distribution whose record holds these files."""

    def __init__(self, **files: str) -> None:
        self._files = {name.replace("_txt", ".txt"): text for name, text in files.items()}

    def read_text(self, filename: Any) -> str | None:
        return self._files.get(str(filename))

    def locate_file(self, path: Any) -> Path:
        return Path("/nowhere", path)


def described(record: str = "acme-1.0.dist-info", **files: str) -> Installed:
    return Installed(record=record, root="/nowhere", distribution=OfTexts(**files))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("kda = acme_kda", [("kda", "acme_kda")]),
        ("kda=acme.kda", [("kda", "acme.kda")]),
        ("  kda = acme:kda [extra]  ", [("kda", "acme:kda [extra]")]),
        ("# kda = acme\n\n[other]\nx = y", []),
        ("[other]\nx = y\n[megatron_seams]\na = b", [("a", "b")]),
        ("a = b\na = c", [("a", "b"), ("a", "c")]),
        ("kda =", [("kda", "")]),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_entry_points_of_a_group_are_given_in_their_order(
    lines: str, expected: list[tuple[str, str]], newline: str
) -> None:
    text = f"[{GROUP}]\n{lines}".replace("\n", newline)
    assert described(entry_points_txt=text).entry_points(GROUP) == tuple(expected)


def test_entry_points_that_cannot_be_read_are_said_to_be_so() -> None:
    found = described(entry_points_txt=f"[{GROUP}]\nkda").entry_points(GROUP)
    assert isinstance(found, str)
    assert "no list of `name = package`" in found


def test_a_damaged_file_that_does_not_mention_the_group_is_no_fault() -> None:
    assert described(entry_points_txt="[other]\nno entry").entry_points(GROUP) == ()
    assert described().entry_points(GROUP) == ()


@pytest.mark.parametrize(
    ("metadata", "identity"),
    [
        (
            "Metadata-Version: 2.1\nName: Acme.Kda\nVersion: 1.0\n\nName: other\n",
            ("Acme.Kda", "1.0"),
        ),
        ("Version: 1.0\n", None),
        ("Name: acme\nVersion:\n", None),
        ("", None),
    ],
)
def test_an_identity_is_a_name_and_a_version(
    metadata: str, identity: tuple[str, str] | None
) -> None:
    assert described(METADATA=metadata).identity == identity


@pytest.mark.parametrize(
    ("record", "key"),
    [
        ("acme_kda-1.0.dist-info", "acme-kda"),
        ("Acme.Kda-1.0.DIST-INFO", "acme-kda"),
        ("acme_kda.egg-info", "acme-kda"),
        ("EGG-INFO", "by-its-metadata"),
        ("of-a-finder-9", "by-its-metadata"),
    ],
)
def test_the_key_is_the_normalized_name(record: str, key: str) -> None:
    assert described(record, METADATA="Name: By_its.metadata\nVersion: 1\n").key == key


def egg(folder: Path, name: str) -> str:
    """An unpacked egg on the path."""
    info = folder / f"{name}-2.0.egg" / "EGG-INFO"
    info.mkdir(parents=True)
    (info / "PKG-INFO").write_text(f"Name: {name}\nVersion: 2.0\n")
    return str(info.parent)


def test_every_kind_of_installation_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    for name in ("one", "Two.Parts", "three_parts"):
        install_plugin(site, name, {f"acme_{name[:3]}": manifest_table("kda", "kda")})
    (site / "lone.egg-info").write_text("Name: lone\nVersion: 3\n")
    (site / "Shouting-1.0.DIST-INFO").mkdir()
    (site / "folder-1.0.egg-info").mkdir()
    (site / "folder-1.0.egg-info" / "PKG-INFO").write_text("Name: folder\nVersion: 1\n")
    eggs = [egg(tmp_path, "hen"), egg(tmp_path, "duck")]
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("zipped-1.0.dist-info/METADATA", "Name: zipped\nVersion: 1.0\n")
    (tmp_path / "text").write_text("neither a folder nor an archive")
    added = [*eggs, *(str(tmp_path / name) for name in ("packed.zip", "text", "nowhere"))]
    before = {it.record for it in installed()}
    monkeypatch.setattr(sys, "path", ["", *added, *sys.path])
    monkeypatch.chdir(site)

    everything = list(installed())
    found = [it for it in everything if it.record not in before]

    assert before < {it.record for it in everything}

    assert {it.key: it.identity for it in found} == {
        "one": ("one", "1.0"),
        "two-parts": ("Two.Parts", "1.0"),
        "three-parts": ("three_parts", "1.0"),
        "lone": ("lone", "3"),
        "shouting": None,
        "folder": ("folder", "1"),
        "hen": ("hen", "2.0"),
        "duck": ("duck", "2.0"),
        "zipped": ("zipped", "1.0"),
    }
    assert [it.identity for it in named("Three.Parts", found)] == [("three_parts", "1.0")]
    (one,) = named("one", found)
    assert one.file("acme_one").resolve() == site / "acme_one"
    assert "acme_one/seam.toml," in (one.recorded() or "")


def test_a_damaged_record_hides_neither_itself_nor_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("sound", "nameless", "bare", "binary", "listless", "odd")
    info = {
        name: install_plugin(tmp_path, name, {f"acme_{name}": manifest_table(name)})
        for name in names
    }
    (info["nameless"] / "METADATA").write_bytes(b"\xff\xfe\x00")
    (info["bare"] / "METADATA").unlink()
    (info["binary"] / "entry_points.txt").write_bytes(b"\xff[megatron_seams]\n")
    (info["listless"] / "RECORD").write_bytes(b"\xff")
    (info["odd"] / "direct_url.json").write_text("{")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    found = {it.key: it for it in installed()}

    assert set(found) == set(names)
    assert {name for name in names if found[name].identity is None} == {"nameless", "bare"}
    assert {name for name in names if isinstance(found[name].entry_points(GROUP), str)} == {
        "binary"
    }
    assert {name for name in names if found[name].recorded() is None} == {"listless"}
    assert not any(it.editable_roots() for it in found.values())


def test_an_editable_installation_says_where_its_project_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "a project"
    for name, editable in (("linked", True), ("copied", False)):
        info = install_plugin(tmp_path / "site", name, {})
        record = {"url": project.as_uri(), "dir_info": {"editable": editable}}
        (info / "direct_url.json").write_text(json.dumps(record))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    assert {it.key: it.editable_roots() for it in installed()} == {
        "linked": [project],
        "copied": [],
    }


def test_the_first_folder_of_the_path_hides_the_later_ones_and_two_records_in_it_are_both_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for version in ("1.0", "2.0"):
        install_plugin(first, "acme", {}, version=version)
    install_plugin(second, "acme", {}, version="3.0")
    (tmp_path / "link").symlink_to(first)
    monkeypatch.setattr(sys, "path", [str(first), str(tmp_path / "link"), str(first), str(second)])
    assert sorted(str(it.identity) for it in installed()) == ["('acme', '1.0')", "('acme', '2.0')"]


class Finder:
    """A finder of somebody's own, as PEP 302's hooks allow."""

    def __init__(self, metadata: str | None) -> None:
        self._metadata = metadata

    def find_spec(self, *_: Any) -> None:
        return None

    def find_distributions(self, _: Any) -> Iterator[importlib.metadata.Distribution]:
        metadata = self._metadata

        class Elsewhere(importlib.metadata.Distribution):
            def read_text(self, filename: str) -> str | None:
                return metadata if filename == "METADATA" else None

            def locate_file(self, path: Any) -> Path:
                return Path("/elsewhere", path)

        yield Elsewhere()


@pytest.mark.parametrize(
    ("metadata", "record", "identity"),
    [
        ("Name: else_where\nVersion: 9\n", "else_where-9", ("else_where", "9")),
        (None, "unknown", None),
    ],
)
def test_what_another_finder_finds_is_listed(
    metadata: str | None,
    record: str,
    identity: tuple[str, str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {it.record for it in installed()}
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder(metadata)])
    found = {it.record: it for it in installed()}
    assert set(found) == {*before, record}
    assert found[record].identity == identity
    assert found[record].key == ("else-where" if identity else "unknown")
