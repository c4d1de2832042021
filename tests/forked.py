"""Processes that find Megatron already imported.

Importing Megatron takes a process 5 to 7 s. The processes here are forked from one that has done
it once: multiprocessing's own fork server, started for the first that asks. Not for a test of what
a fresh process does (what it imports, how it ends): that one starts its own Python.
"""

import functools
import multiprocessing
import os
import queue
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Final

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from megatron_seams.runtime.cpu import ranks

#: What the server imports; these bring Megatron, and what a model, a checkpoint and a run need.
PRELOADED: Final = (
    "megatron_seams.runtime.conformance.parallel",
    "megatron_seams.runtime.smoke.run",
    "megatron.core.dist_checkpointing.strategies.torch",  # otherwise at the first save
)
_SECONDS: Final = 300

Environment = Mapping[str, str]


@functools.cache
def _environment_of_server() -> Environment:
    """Start the server; the environment that everything forked from it begins with."""
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    forkserver.ensure_running()
    return dict(os.environ)


def stop_server() -> None:
    """End the server and wait for it: its processor time is then part of this process's."""
    if _environment_of_server.cache_info().currsize:
        forkserver._forkserver._stop()  # there is no public way
        _environment_of_server.cache_clear()


def save_without_a_manager() -> None:
    """Save checkpoints in this process alone, if Megatron is imported.

    In every process that saves, Megatron starts another for the queue of results, which imports
    torch: 2 to 3 s for each rank. Whoever saves synchronously, as all here do, is the queue's one
    user. Processes that are not forked (those of ``registry smoke --save``) still have it.
    """
    if "megatron.core" not in sys.modules:
        return
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = queue.Queue()


def fork_ranks() -> None:
    """Let ``on_ranks`` fork its ranks in this process."""

    def launch(config: LaunchConfig, rank: Callable[..., Any]) -> Callable[..., Any]:
        config.start_method = "forkserver"
        launched = elastic_launch(config, _rank)
        return lambda *of: launched(rank, _environment_of_server(), dict(os.environ), *of)

    ranks.elastic_launch = launch


def spawn_ranks() -> None:
    """Let ``on_ranks`` start fresh processes, as it does for its users."""
    ranks.elastic_launch = elastic_launch


def _rank(
    function: Callable[..., Any], servers: Environment, launchers: Environment, *arguments: Any
) -> Any:
    """A rank's function, in the environment of the process that launches it."""
    its_own = {k: v for k, v in os.environ.items() if servers.get(k) != v}  # RANK and its like
    os.environ.clear()
    os.environ.update(launchers, **its_own)
    save_without_a_manager()
    return function(*arguments)


def registry(*arguments: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run ``python -m megatron_seams``; as ``seam_support.registry``, on this Megatron alone."""
    return run_python("-m", "megatron_seams", *arguments, **settings)


def run_python(
    *arguments: str | Path,
    path: Iterable[Path] = (),
    cwd: Path | None = None,
    code: int | None = None,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run ``-m MODULE ...`` or ``FILE ...`` as ``seam_support.run_python`` does, forked.

    Args:
        *arguments: Of the command line.
        path: Folders that go first on ``sys.path``; another Megatron there would come too late.
        cwd: The working directory.
        code: The exit code to insist on.
        **variables: Environment variables.
    """
    _environment_of_server()
    words = [str(argument) for argument in arguments]
    first = [str(folder) for folder in path]
    settings = {**os.environ, **variables}
    settings["PYTHONPATH"] = os.pathsep.join([*first, *filter(None, [settings.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("out", "err")]
        for stream in streams:
            stream.touch()
        process = multiprocessing.get_context("forkserver").Process(
            target=_python, args=(words, first, cwd, settings, streams)
        )
        process.start()
        process.join(_SECONDS)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(words, _SECONDS)
        out, err = (stream.read_text(encoding="utf-8") for stream in streams)
    done = subprocess.CompletedProcess(words, process.exitcode, out, err)
    if code is not None:
        assert done.returncode == code, done.stdout + done.stderr
    return done


def _python(
    words: list[str],
    path: list[str],
    cwd: Path | None,
    environment: Environment,
    streams: list[Path],
) -> None:
    """Be the Python of a command line."""
    assert "megatron.core" in sys.modules, "the server could not import what PRELOADED names"
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd or ".")
    sys.path[:0] = path
    save_without_a_manager()
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
