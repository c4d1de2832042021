"""Running one function on several ranks of this machine, each a fresh process.

The tests and the conformance kit use it. The launch is torch's own, the one behind torchrun: it
finds a free port, gives each process its ``RANK`` and ``WORLD_SIZE``, and ends all of them as soon
as one fails.
"""

import importlib
import importlib.util
import pickle
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


class RankFailed(Exception):
    """A rank raised, or ended before its function returned."""


def on_ranks(function: Callable[..., Any], *arguments: Any, world_size: int = 2) -> list[Any]:
    """Call ``function(*arguments)`` on every rank at once.

    The function joins the other ranks by itself, through :func:`.world.cpu_world` for example. The
    new processes have this one's ``sys.path`` and environment, and one torch thread each. They find
    the function by its module's name or, where that cannot be imported (a test module), by its
    module's file.

    Args:
        function: A function at the top level of a module.
        *arguments: Values that can be pickled.
        world_size: The number of processes.

    Returns:
        The result of each rank's call, in the order of ranks; it may hold tensors.

    Raises:
        RankFailed: A rank did not return; with the traceback of the one that failed first.
    """
    module = sys.modules[function.__module__]
    launch = elastic_launch(
        LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=world_size,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
        ),
        _rank,
    )
    try:
        returned = launch(
            module.__name__, str(module.__file__), function.__qualname__, pickle.dumps(arguments)
        )
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise RankFailed(f"rank {rank}: {failure.message}\n{_traceback(failure)}") from None
    return [pickle.loads(returned[rank]) for rank in range(world_size)]  # noqa: S301 - our own


@record
def _rank(module: str, file: str, function: str, arguments: bytes) -> bytes:
    torch.set_num_threads(1)
    call = getattr(_module(module, Path(file)), function)
    # As bytes, since a tensor that travels by itself lives in memory that ends with this process.
    return pickle.dumps(call(*pickle.loads(arguments)))  # noqa: S301 - our own


def _module(name: str, file: Path) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError:
        module = None
    if module is not None and module.__file__ == str(file):
        return module
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        message = f"no module in {file}"
        raise ImportError(message)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # before it runs: pickle and dataclasses look a class's module up
    spec.loader.exec_module(loaded)
    return loaded


def _traceback(failure: Any) -> str:
    data = failure.error_file_data.get("message", {})
    extra = data.get("extraInfo", {}) if isinstance(data, dict) else {}
    return str(extra.get("py_callstack", ""))
