"""The runtime and every plugin on each supported Megatron release beside the installed one.

A test whose outcome can differ by release is marked ``release``. These tests run once more here, in
a process whose path has the older release first; torch and everything else stay the environment's.
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


@pytest.mark.parametrize("release", megatron_releases.RUN)
def test_what_differs_by_release_passes_on(
    release: str, repository: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    path = os.pathsep.join([str(megatron_releases.installation(release)), *sys.path])
    report = tmp_path / "report.xml"
    marked = [
        file
        for folder in (repository / "tests", *sorted(repository.glob("plugins/*/tests")))
        for file in sorted(folder.rglob("test_*.py"))
        if "mark.release" in file.read_text(encoding="utf-8")
    ]
    marked.remove(Path(__file__))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *map(str, marked), "-m", "release"),
            *("-q", "-rs", "-W", "ignore", "-p", "no:cacheprovider", f"--junitxml={report}"),
        ],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    cases = ElementTree.parse(report).getroot().findall(".//testcase")  # noqa: S314  # our own
    passed = [case for case in cases if case.find("skipped") is None]
    # A skip that swallows a file is no success: something of each exists on every release.
    modules = {
        case.attrib["classname"].rpartition(".Test")[0] or case.attrib["classname"]
        for case in passed
    }
    assert {file.stem for file in marked} <= {module.rpartition(".")[2] for module in modules}
    # And of the conformance kit, for every seam of the repository.
    kits = {file.stem for file in repository.glob("plugins/*/tests/test_*conformance.py")}
    assert kits
    assert kits <= {file.stem for file in marked}
    # Recorded by a test that compared what was imported with what was read.
    (megatron,) = {
        entry.attrib["value"]
        for case in passed
        for entry in case.iter("property")
        if entry.attrib["name"] == "megatron-core"
    }
    assert megatron.startswith(f"{release}.")
    summary = done.stdout.strip().splitlines()[-1]
    record_property("summary", f"megatron-core {megatron}: {summary}")
