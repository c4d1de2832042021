"""``import megatron_seams as ms``: the public surface, light, whole and documented."""

import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest

import megatron_seams as ms
from seam_support import run_python

#: Modules that importing the public surface must not load.
HEAVY = ("torch", "megatron", "click", "rich", "jinja2", "cattrs", "attrs")


def test_the_package_alone_loads_nothing(tmp_path: Path) -> None:
    program = "import sys, json, megatron_seams; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(run_python("-c", program, cwd=tmp_path).stdout)
    ours = [name for name in loaded if name.partition(".")[0] == "megatron_seams"]
    assert ours == ["megatron_seams", "megatron_seams._version"]
    assert not [name for name in loaded if name.partition(".")[0] in HEAVY]


def test_every_public_name_is_there_and_listed() -> None:
    for name in ms.__all__:
        assert getattr(ms, name) is not None, name
    assert set(ms.__all__) <= set(dir(ms))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ms.nothing  # noqa: B018


def test_every_public_name_stands_on_its_page(repository: Path) -> None:
    page = (repository / "docs" / "python.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `ms\.(\w+)", page, re.MULTILINE))
    assert listed == set(ms.__all__)


def test_the_version_is_that_of_the_distribution() -> None:
    assert ms.__version__ == version("megatron-seams")


def test_a_plan_is_three_calls(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('schema = 1\n[model]\nname = "m"\npattern = "M*ME"\n')
    plan = ms.resolve(ms.load_recipe(str(recipe)), ms.read_environment())
    assert [layer.family for layer in plan.layers] == ["mamba", "attention", "mamba", "moe"]
    receipt = tmp_path / "receipt.json"
    receipt.write_text(ms.make_receipt(plan, ms.load_recipe(recipe)))
    assert ms.verify(str(receipt), ms.read_environment()) == ()
