"""Compiled code is loaded only where nobody else can have put it, and only whole."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch  # noqa: F401  # the module under test brings it, and what only plans has none

from megatron_seams.runtime import extensions
from megatron_seams.runtime.extensions import NotBuilt, build, keep_bytes, kept_bytes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Code that is kept."""
    file = tmp_path / "caches" / "name-key" / "name.so"
    keep_bytes(file, b"code")
    assert kept_bytes(file) == b"code"
    return file


def _cut(file: Path) -> None:
    os.truncate(file, 2)


def _replaced(file: Path) -> None:
    file.write_bytes(b"evil")


def _without_record(file: Path) -> None:
    file.with_name("name.so.sha256").unlink()


def _link(file: Path) -> None:
    file.rename(file.with_name("other.so"))
    file.symlink_to("other.so")


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _writable(file: Path) -> None:
    file.chmod(0o664)


def _writable_folder(file: Path) -> None:
    file.parent.chmod(0o777)


def _of_another(file: Path) -> None:
    os.chown(file, 4711, -1)


def _folder_of_another(file: Path) -> None:
    os.chown(file.parent, 4711, -1)


HARM = (_cut, _replaced, _without_record, _link, _pipe, _writable, _writable_folder)
BY_OTHERS = (_of_another, _folder_of_another)


@pytest.mark.parametrize("harm", [*HARM, *BY_OTHERS])
def test_what_may_be_another_s_or_is_not_whole_is_not_loaded(
    harm: Callable[[Path], None], file: Path
) -> None:
    if harm in BY_OTHERS and os.geteuid():
        pytest.skip("only root gives files away")
    harm(file)
    assert kept_bytes(file) is None
    if harm is _folder_of_another:
        with pytest.raises(NotBuilt, match=r"belongs to another user \(4711\).*TORCH_EXTENSIONS"):
            keep_bytes(file, b"code")
    else:
        keep_bytes(file, b"code")
        assert kept_bytes(file) == b"code"


@pytest.mark.parametrize("harm", [_cut, _replaced, _writable_folder])
def test_a_library_that_is_cut_or_replaced_is_built_again(
    harm: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut library that is loaded stops the process by a signal."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
    source = tmp_path / "csrc" / "one.cpp"
    source.parent.mkdir()
    source.write_text("")
    compiled: list[Path] = []

    def compile_it(_: Path, built: Path, *__: object) -> None:
        compiled.append(built)
        keep_bytes(built, b"library")

    monkeypatch.setattr(extensions, "_compile", compile_it)
    built = build(source, name="one", seam="one", flags=())
    assert build(source, name="one", seam="one", flags=()) == built
    assert len(compiled) == 1
    harm(built)
    assert build(source, name="one", seam="one", flags=()) == built
    assert len(compiled) == 2
    assert built.read_bytes() == b"library"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source with a header, of which nothing is compiled."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
    monkeypatch.setattr(extensions, "_compile", lambda _, built, *__: keep_bytes(built, b"library"))
    source = tmp_path / "csrc" / "one.cpp"
    source.parent.mkdir()
    source.write_text("int one;")
    source.with_name("two.h").write_text("int two;")
    return source


def test_a_library_is_that_of_its_files_and_what_lies_beside_them_is_none(source: Path) -> None:
    first = build(source, name="one", seam="one", flags=())
    (source.parent / "__pycache__").mkdir()
    assert build(source, name="one", seam="one", flags=()) == first
    # The same text in the same order, and another file's.
    source.write_text("int one;int two;")
    source.with_name("two.h").write_text("")
    moved = build(source, name="one", seam="one", flags=())
    source.with_name("two.h").rename(source.with_name("three.h"))
    assert len({first, moved, build(source, name="one", seam="one", flags=())}) == 3


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home, as in a container."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_a_folder_is_asked_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build(source, name="one", seam="one", flags=()).is_relative_to(tmp_path / "built")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    with pytest.raises(NotBuilt, match="TORCH_EXTENSIONS_DIR"):
        build(source, name="one", seam="one", flags=())


@pytest.mark.megatron
@pytest.mark.usefixtures("homeless")
def test_a_machine_without_a_home_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_seams.runtime.machine import read_machine

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    assert "TORCH_EXTENSIONS_DIR" in read_machine().extensions


def test_a_lock_that_cannot_be_had_leaves_the_library_unbuilt(source: Path) -> None:
    built = build(source, name="one", seam="one", flags=())
    built.unlink()
    lock = built.with_name("build.lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()
    with pytest.raises(NotBuilt, match=r"build\.lock cannot be locked"):
        build(source, name="one", seam="one", flags=())
