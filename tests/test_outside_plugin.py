"""A seam outside this repository: the one that docs/write-a-seam.md makes, built and trained.

Its family is one that core has never heard of and its recipe maps a token to it; nothing in core
changes. The files are the page's own, so the page is true as well.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from seam_support import registry

pytestmark = [pytest.mark.megatron, pytest.mark.install]

_BLOCK = re.compile(r"^```(?:toml|python)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def page(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page, in a folder of their own."""
    folder = tmp_path_factory.mktemp("outside") / "my-kda"
    text = (repository / "docs" / "write-a-seam.md").read_text(encoding="utf-8")
    for name, content in _BLOCK.findall(text):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    (folder / "src" / "my_kda" / "__init__.py").touch()
    return folder


@pytest.fixture(scope="module")
def site(page: Path) -> Path:
    """The wheel of the page's package, installed into a folder for PYTHONPATH."""
    wheels, site = page / "dist", page / "site"
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels)]
    subprocess.run([*build, str(page)], check=True, capture_output=True)
    (wheel,) = wheels.glob("my_kda-*.whl")
    # What an installer does with a wheel of pure Python that has no scripts.
    shutil.unpack_archive(wheel, site, format="zip")
    return site


def test_it_is_listed_with_its_owner_and_as_an_experiment(site: Path) -> None:
    done = registry("list", "--owners", path=[site], code=0)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("kda")]
    assert "experiment" in line
    assert "@my-team/attention" in line
    assert "native (KDA)" in line


def test_it_is_refused_until_the_recipe_names_the_experiment(site: Path, page: Path) -> None:
    recipe = page / "with-kda.toml"
    silent = page / "silent.toml"
    named = 'experiments = ["kda"]'
    assert named in recipe.read_text()
    silent.write_text(recipe.read_text().replace(named, ""))
    assert "SEAM-R05" in registry("resolve", silent, path=[site], code=2).stderr
    assert "experiment 2" in registry("resolve", recipe, path=[site], code=0).stdout


def test_it_builds_and_trains(site: Path, page: Path) -> None:
    done = registry("smoke", page / "with-kda.toml", "--steps", "2", path=[site], code=None)
    assert "2 steps" in done.stdout, done.stdout + done.stderr
    assert "held-back loss" in done.stdout
