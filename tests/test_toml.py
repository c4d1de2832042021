"""TOML is read through one function, which fails in one way."""

from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_seams.base.toml import TomlError, read_toml


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_file_and_its_bytes_are_the_same_table(newline: bytes, tmp_path: Path) -> None:
    data = newline.join((b"[a]", "b = 'é'".encode(), b""))
    file = tmp_path / "file.toml"
    file.write_bytes(data)
    assert read_toml(data) == read_toml(file) == {"a": {"b": "é"}}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff", "'utf-8' codec can't decode"),
        (b"a = ", "Invalid value (at end of document)"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = " + b"1" * 5_000, "integer string conversion"),
    ],
)
def test_what_cannot_be_read_fails_with_the_reason(data: bytes, why: str, tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_bytes(data)
    reads: tuple[Callable[[], object], ...] = (lambda: read_toml(data), lambda: read_toml(file))
    for read in reads:
        with pytest.raises(TomlError) as raised:
            read()
        assert why in str(raised.value)


def test_a_file_that_is_not_there_fails_in_the_same_way(tmp_path: Path) -> None:
    with pytest.raises(TomlError, match="No such file"):
        read_toml(tmp_path / "nowhere.toml")
    with pytest.raises(TomlError, match="Is a directory"):
        read_toml(tmp_path)
