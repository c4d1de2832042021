"""Fixtures of the operator's tests: its backends, and one thread for torch."""

import os
import sys
from collections.abc import Iterator

import pytest

#: Under Triton's interpreter, which a process is in or is not, the suite is that backend's
#: (``test_triton.py`` runs it so).
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ("triton",) if INTERPRETED else ("reference", "torch", "cpu")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn, by the name that an argument or a recipe gives it."""
    name: str = request.param
    return name


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The tensors here are too small to share, and waiting costs more."""
    torch = sys.modules.get("torch")
    if torch is None:  # a test of the planner's
        yield
        return

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
