"""What is read of an environment without importlib_metadata is what importlib_metadata reads."""

import importlib.metadata
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import importlib_metadata
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_seams.base.distributions import Installed, installed, named
from seam_support import install_plugin, manifest_table

GROUP = "megatron_seams"

#: Pieces of an ``entry_points.txt``, ordinary and not.
PIECES = (
    *("[megatron_seams]", "[megatron_seams", "[[megatron_seams]]", "[ megatron_seams ]", "[other]"),
    *("kda = acme_kda", "kda=acme.kda", "kda = acme:kda [extra]", "a = b = c", "=", "kda =", "kda"),
    *("", "   ", "# kda = acme", "  ; kda = acme", "\t[megatron_seams]\t", "é = acme", "[]"),
)


def described(text: str) -> Installed:
    """A distribution with these entry points."""
    return Installed(record="acme-1.0.dist-info", root="", read=lambda _: text)


def judged(text: str) -> tuple[tuple[str, str], ...] | str:
    """What importlib_metadata makes of them."""

    class Described(importlib_metadata.Distribution):
        def read_text(self, filename: Any) -> str:  # noqa: ARG002 - it has one file
            return text

        def locate_file(self, path: Any) -> Path:
            return Path(path)

    try:
        return tuple((it.name, it.value) for it in Described().entry_points if it.group == GROUP)
    except Exception as error:  # noqa: BLE001 - whatever it raises is what is said
        return f"{type(error).__name__}: {error}"


@given(st.lists(st.sampled_from(PIECES)), st.sampled_from(("\n", "\r\n", "\n\n", "\x0b")))
def test_entry_points_are_those_that_importlib_metadata_reads(
    lines: list[str], newline: str
) -> None:
    text = f"[{GROUP}]{newline}" + newline.join(lines)
    assert described(text).entry_points(GROUP) == judged(text)


def test_a_file_that_does_not_speak_of_the_group_is_not_found_fault_with() -> None:
    assert described("[other]\nno entry").entry_points(GROUP) == ()


def test_the_distributions_are_those_that_importlib_metadata_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "Two.Parts", "three_parts"):
        install_plugin(tmp_path / "site", name, {f"acme_{name[:3]}": manifest_table("kda", "kda")})
    (tmp_path / "site" / "lone.egg-info").write_text("Name: lone\nVersion: 3\n")
    (tmp_path / "site" / "Shouting-1.0.DIST-INFO").mkdir()
    (tmp_path / "site" / "folder-1.0.egg-info").mkdir()
    (tmp_path / "site" / "folder-1.0.egg-info" / "PKG-INFO").write_text(
        "Name: folder\nVersion: 1\n"
    )
    egg = tmp_path / "hen-2.0.egg" / "EGG-INFO"
    egg.mkdir(parents=True)
    (egg / "PKG-INFO").write_text("Name: hen\nVersion: 2.0\n")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("zipped-1.0.dist-info/METADATA", "Name: zipped\nVersion: 1.0\n")
    (tmp_path / "text").write_text("neither a folder nor an archive")
    added = ("site", "hen-2.0.egg", "packed.zip", "text", "nowhere")
    monkeypatch.setattr(sys, "path", ["", *sys.path, *(str(tmp_path / name) for name in added)])
    monkeypatch.chdir(tmp_path / "site")

    found = list(installed())

    expected: dict[str, str | None] = {}
    folders: dict[str, Path] = {}
    for one in importlib_metadata.distributions():
        path = Path(str(one._path))  # type: ignore[attr-defined]
        # Further down the path, as some libraries bring others along, it is never imported.
        key = Installed(record=path.name, root="", read=lambda _: None).key
        if folders.setdefault(key, path.parent) == path.parent:
            expected.setdefault(path.name, one.read_text("METADATA"))
    assert {it.record: it.read("METADATA") for it in found} == expected
    identities = {it.record: it.identity for it in found}
    assert identities["lone.egg-info"] == ("lone", "3")
    assert identities["folder-1.0.egg-info"] == ("folder", "1")
    assert identities["EGG-INFO"] == ("hen", "2.0")
    assert identities["zipped-1.0.dist-info"] == ("zipped", "1.0")
    assert identities["Shouting-1.0.DIST-INFO"] is None
    assert [it.identity for it in named("Three.Parts", found)] == [("three_parts", "1.0")]


class Finder:
    """A finder of somebody's own, as PEP 302's hooks allow."""

    def find_spec(self, *_: Any) -> None:
        return None

    def find_distributions(self, _: Any) -> Iterator[importlib.metadata.Distribution]:
        class Elsewhere(importlib.metadata.Distribution):
            def read_text(self, filename: str) -> str | None:
                return {"METADATA": "Name: elsewhere\nVersion: 9\n"}.get(filename)

            def locate_file(self, path: Any) -> Path:
                return Path("/elsewhere", path)

        yield Elsewhere()


def test_what_a_finder_of_somebodys_own_finds_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {it.record for it in installed()}
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    found = {it.record: it.identity for it in installed()}
    assert set(found) == {*before, "elsewhere-9"}
    assert found["elsewhere-9"] == ("elsewhere", "9")
