"""Flags and fields as read from a source; test_upstream_parser.py holds them to upstream's own."""

import subprocess
import sys
from pathlib import Path

import attrs
import pytest

import megatron_releases
from megatron_seams.errors import UnknownNativeKey
from megatron_seams.upstream.locate import importable_megatron, open_megatron
from megatron_seams.upstream.settings import NativeSettings, read_settings
from megatron_seams.upstream.source import MegatronSource
from seam_support import environment, reasons, recipe


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


# --- configurations that are decorated, or cannot be read ----------------------------------------

MARKED = """
from dataclasses import dataclass

from megatron.core.utils import experimental_api


@dataclass
@experimental_api
class TransformerConfig:
    hidden_size: int = 0


@dataclass
@experimental_api
class MLATransformerConfig(TransformerConfig):
    kv_lora_rank: int = 512
"""
MARKS = '''
def experimental_api(func):
    """Mark a function or class."""
    func._experimental_api = True
    return func
'''


def configured(path: Path, decorator: str, config: str = MARKED) -> MegatronSource:
    """The installed Megatron with another configuration, whose decorator is ``decorator``."""
    source, _ = importable_megatron()
    assert source is not None
    texts = {"core/transformer/transformer_config.py": config, "core/utils.py": decorator}

    def read(name: str) -> bytes | None:
        return texts[name].encode() if name in texts else source.read(name)

    return MegatronSource(origin=str(path), read=read)


def test_a_decorator_that_only_marks_a_configuration_is_read_through(tmp_path: Path) -> None:
    found = read_settings(configured(tmp_path, MARKS))
    assert found.config_fields == {"hidden_size": 0, "kv_lora_rank": 512}
    assert found.fields_unread == ()


@pytest.mark.parametrize(
    "decorator",
    [
        MARKS.replace("return func", "return changed(func)"),
        MARKS.replace("return func", "return other"),
        MARKS.replace("    return", "    func.hidden_size = 3\n    return"),
        MARKS.replace("def experimental_api", "@changed\ndef experimental_api"),
        MARKS + "\nexperimental_api = changed\n",
        "",
    ],
)
def test_a_configuration_that_may_be_changed_is_said_to_be_unread(
    decorator: str, tmp_path: Path
) -> None:
    source = configured(tmp_path, decorator)
    assert "made by experimental_api" in read_settings(source).fields_unread[0]
    found = attrs.evolve(environment(), source=source)
    (fault,) = reasons(recipe("M", megatron={"hidden_size": 64}), found)
    assert isinstance(fault, UnknownNativeKey)
    assert "cannot be read: the fields of TransformerConfig" in fault.found
    assert "no such setting" not in fault.found


def test_a_source_without_a_configuration_is_said_to_be_unread(tmp_path: Path) -> None:
    found = read_settings(configured(tmp_path, MARKS, config=""))
    assert "no such class" in found.fields_unread[0]
