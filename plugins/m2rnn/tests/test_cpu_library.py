"""Building the C++: once, under a lock that dies with its holder, and never silently without."""

import ctypes
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_seams.errors import CannotRunHere
from megatron_seams.runtime import extensions, kernels
from megatron_seams.runtime.extensions import SlowBackend
from megatron_seams_m2rnn.ops import dispatch as backends
from megatron_seams_m2rnn.ops import torch_loop
from megatron_seams_m2rnn.ops.cpu.library import Call, Library, NotBuilt, build, library
from megatron_seams_m2rnn.ops.dispatch import choose

CPU = torch.device("cpu")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which nothing is built yet, for a process that has loaded nothing yet."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    _forget()
    yield tmp_path
    _forget()


def _forget() -> None:
    for remembered in (library, extensions.build_fault, kernels._warn_of_stand_in):
        remembered.cache_clear()


def test_a_build_is_named_while_it_runs_and_once_killed_leaves_nothing_to_wait_for(
    empty: Path,
) -> None:
    builder = subprocess.Popen(
        [sys.executable, "-m", "megatron_seams_m2rnn.ops.cpu.library"], start_new_session=True
    )
    try:
        while not list(empty.glob("*/building-*/build.ninja")):
            assert builder.poll() is None, "the build was over before it could be killed"
            time.sleep(0.01)
        (lock,) = empty.glob("*/build.lock")
        with pytest.raises(CannotRunHere, match="has been held for 0 seconds") as caught:
            build(patience=0)
        assert str(lock) in caught.value.found
        assert str(lock.parent) in caught.value.next
    finally:
        os.killpg(builder.pid, signal.SIGKILL)
        builder.wait()
    assert lock.exists()
    assert list(empty.glob("*/building-*")), "the build was over before it was killed"

    built = build(patience=0)
    kept = ["build.lock", built.name, f"{built.name}.sha256"]
    assert sorted(path.name for path in built.parent.iterdir()) == kept
    assert Library(built).lanes(torch.float32) > 1
    changed = built.stat().st_mtime_ns
    assert build(patience=0) == built
    assert built.stat().st_mtime_ns == changed, "it was built again"


def test_without_a_compiler_the_torch_backend_is_named_and_an_explicit_cpu_is_refused(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(empty / "no-compiler"))
    with pytest.raises(CannotRunHere, match=r"SEAM-B05.*'cpu'(?s:.*)building m2rnn.cpp failed"):
        choose("cpu", CPU)
    with pytest.warns(SlowBackend, match=r"the slower 'torch' stands in: building m2rnn.cpp"):
        assert choose(None, CPU) is torch_loop.recurrence
    with warnings.catch_warnings(action="error"):  # once is enough, and it is not built again
        assert choose(None, CPU) is torch_loop.recurrence
    assert not list(empty.glob("*/building-*"))


def test_a_folder_that_cannot_be_made_is_named(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(empty / "file"))
    with pytest.raises(NotBuilt, match="file/megatron_seams_m2rnn"):
        library()


def test_a_lock_that_is_held_is_an_error_and_no_reason_to_be_slow(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked() -> None:
        raise CannotRunHere(asked="the C++", found="the lock is held", next="wait")

    monkeypatch.setattr(backends, "library", locked)
    with pytest.raises(CannotRunHere, match="the lock is held"):
        choose(None, CPU)
    assert not list(empty.iterdir())


def test_python_and_the_library_agree_on_a_call() -> None:
    assert library().call_bytes() == ctypes.sizeof(Call)
