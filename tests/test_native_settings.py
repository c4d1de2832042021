"""Flags and fields as read from a source; test_upstream_parser.py holds them to upstream's own."""

import subprocess
import sys
from pathlib import Path

import pytest

import megatron_releases
from megatron_seams.upstream.locate import importable_megatron, open_megatron
from megatron_seams.upstream.settings import NativeSettings, read_settings


def _read(release: str) -> NativeSettings:
    if release in megatron_releases.RUN:
        return read_settings(open_megatron(megatron_releases.installation(release)))
    source, _ = importable_megatron()
    assert source is not None
    return read_settings(source)


@pytest.mark.published
def test_a_wheel_without_the_trainer_has_no_flags_and_says_so() -> None:
    found = read_settings(open_megatron(megatron_releases.wheel("0.16")))
    assert found.flags == {}
    assert "megatron/training/arguments.py is not in" in found.unread[0]
    assert "hidden_size" in found.config_fields


@pytest.mark.parametrize(
    "change",
    [
        ("add_argument", "add_option"),
        ('"--spec"', "names.SPEC"),
    ],
    ids=str,
)
@pytest.mark.published
def test_a_flag_that_is_not_understood_is_left_out(change: tuple[str, str], tmp_path: Path) -> None:
    import shutil

    tree = tmp_path / "tree"
    shutil.copytree(megatron_releases.installation("0.18") / "megatron", tree / "megatron")
    file = tree / "megatron" / "training" / "arguments.py"
    text = file.read_text().replace("'--spec'", '"--spec"')
    assert change[0] in text
    file.write_text(text.replace(*change))
    assert "--spec" not in read_settings(open_megatron(tree)).flags
    assert "--spec" in _read("0.18").flags


def test_the_nearest_names_are_real_ones() -> None:
    found = _read("installed")
    assert "hidden_size" in found.nearest("hiden_size")
    assert found.nearest("completely_unlike_anything") == ()


def test_reading_settings_imports_nothing_of_megatron() -> None:
    program = (
        "import sys; from megatron_seams.upstream.settings import read_settings;"
        "from megatron_seams.upstream.locate import importable_megatron;"
        "read_settings(importable_megatron()[0]);"
        "print([name for name in ('torch', 'megatron') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
