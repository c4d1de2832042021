"""The runtime and every plugin on each supported Megatron release beside the installed one.

The tests are those of `tests/runtime` and of the plugins' own folders, once more, in a process
whose path has the older release in front. torch and everything else stay the environment's.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

import megatron_releases

pytestmark = pytest.mark.suite

_VERSION = "import megatron.core; print(megatron.core.__version__)"


@pytest.mark.parametrize("release", megatron_releases.RUN)
def test_the_runtime_and_the_plugins_pass_on(
    release: str, repository: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    path = os.pathsep.join([str(megatron_releases.installation(release)), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    version = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _VERSION],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert version.stdout.startswith(f"{release}.")
    report = tmp_path / "report.xml"
    plugins = sorted(str(folder) for folder in repository.glob("plugins/*/tests"))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "tests/runtime", *plugins, "-m", "megatron"),
            *("-q", "-rs", "-W", "ignore", "-p", "no:cacheprovider", f"--junitxml={report}"),
        ],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    suite = ElementTree.parse(report).getroot()[0]  # noqa: S314  # pytest wrote it just now
    ran = int(suite.attrib["tests"]) - int(suite.attrib["skipped"])
    # A collection that went wrong, or a skip that swallows the rest, must not pass for a success.
    assert ran > int(suite.attrib["skipped"])
    modules = {case.attrib["classname"].rpartition(".")[2] for case in suite if not len(case)}
    files = (repository / "tests" / "runtime").glob("test_*.py")
    assert {file.stem for file in files if "mark.megatron" in file.read_text()} <= modules
    record_property("summary", done.stdout.strip().splitlines()[-1])
