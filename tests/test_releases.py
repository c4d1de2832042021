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

#: So many of the runtime's own tests are the least: a skip that swallows them is no success.
_LEAST = 50


@pytest.mark.parametrize("release", megatron_releases.RUN)
def test_the_runtime_and_the_plugins_pass_on(
    release: str, repository: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    path = os.pathsep.join([str(megatron_releases.installation(release)), *sys.path])
    report = tmp_path / "report.xml"
    folders = [repository / "tests" / "runtime", *sorted(repository.glob("plugins/*/tests"))]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *map(str, folders), "-m", "megatron and not suite"),
            *("-q", "-rs", "-W", "ignore", "-p", "no:cacheprovider", f"--junitxml={report}"),
            # The suites come last, when the other cores have nothing left to do.
            *("--numprocesses", "logical", "--dist", "loadfile"),
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
    runtime = [case for case in passed if "runtime" in case.attrib["classname"].split(".")]
    assert len(runtime) >= _LEAST, done.stdout[-8000:]
    # What every test file of the runtime is about exists on each release, at least in part.
    modules = {case.attrib["classname"].rpartition(".")[2] for case in passed}
    files = [file for file in folders[0].glob("test_*.py") if "mark.megatron" in file.read_text()]
    assert {file.stem for file in files} <= modules
    # Recorded by a test that compared the imported Megatron with the one that was read.
    (megatron,) = {
        said.attrib["value"]
        for case in passed
        for said in case.iter("property")
        if said.attrib["name"] == "megatron-core"
    }
    assert megatron.startswith(f"{release}.")
    summary = done.stdout.strip().splitlines()[-1]
    record_property("summary", f"megatron-core {megatron}: {summary}")
