"""Building and loading the C++ of the ``cpu`` backend.

It is built once for each kind of processor, on first use, by torch's own extension loader; or ahead
of time, for an image that has no compiler later::

    python -m megatron_seams_m2rnn.ops.cpu.library
"""

import ctypes
import functools
from pathlib import Path
from typing import Any, Final

import torch

from megatron_seams.runtime import extensions
from megatron_seams.runtime.extensions import PATIENCE, NotBuilt

__all__ = ["PATIENCE", "SOURCE", "Call", "Library", "NotBuilt", "build", "library"]

SOURCE: Final = Path(__file__).parent / "csrc" / "m2rnn.cpp"
_NAME: Final = "megatron_seams_m2rnn_cpu"
_FLAGS: Final = ("-O3", "-std=c++17", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno")

_COUNTS: Final = (
    *("batch", "steps", "heads", "rows", "columns"),
    *("q_heads", "k_heads", "v_heads", "w_heads", "f_heads"),
    *("q_batch", "q_step", "k_batch", "k_step", "v_batch", "v_step"),
    *("documents", "every", "padded_rows", "threads"),
)
_TENSORS: Final = (
    *("bounds", "q", "k", "v", "f", "W", "h0", "dy", "dlast"),
    *("y", "last", "dq", "dk", "dv", "df", "dW", "dh0", "kept"),
    *("own", "carry", "part_q", "part_k", "part_v", "part_f"),
)


class Call(ctypes.Structure):
    """``M2rnnCall`` of the C++, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _COUNTS),
        ("clip", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _TENSORS),
    )


class Library:
    """The loaded C++.

    Args:
        path: The shared library.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._functions = ctypes.CDLL(str(path))
        for name in ("m2rnn_lanes", "m2rnn_scratch", "m2rnn_call_bytes"):
            getattr(self._functions, name).restype = ctypes.c_int64

    def lanes(self, dtype: torch.dtype) -> int:
        """The multiple to which the rows of a state are padded."""
        lanes: int = self._functions.m2rnn_lanes(ctypes.c_int64(dtype.itemsize))
        return lanes

    def scratch(self, dtype: torch.dtype, every: int, columns: int, padded_rows: int) -> int:
        """The scratch of one thread, in elements of ``dtype``."""
        counts = (dtype.itemsize, every, columns, padded_rows)
        elements: int = self._functions.m2rnn_scratch(*map(ctypes.c_int64, counts))
        return elements

    def call_bytes(self) -> int:
        """The bytes of ``M2rnnCall``, which a test compares with :class:`Call`."""
        size: int = self._functions.m2rnn_call_bytes()
        return size

    def run(self, direction: str, dtype: torch.dtype, call: Call) -> None:
        """Run ``forward`` or ``backward`` in float32 or float64."""
        name = str(dtype).removeprefix("torch.")
        self._function(f"m2rnn_{direction}_{name}")(ctypes.byref(call))

    def _function(self, name: str) -> Any:
        function = getattr(self._functions, name)
        function.restype = None
        return function


@functools.cache
def library() -> Library:
    """The library of this machine, built if it is not there.

    Raises:
        NotBuilt: It cannot be built.
        CannotRunHere: Another process has held the build's lock for :data:`PATIENCE` seconds.
    """
    return Library(build())


def build(patience: float = PATIENCE) -> Path:
    """Build the library where it is not built yet; see :func:`.extensions.build`.

    Args:
        patience: Seconds to wait for another process that builds.

    Returns:
        The path of the shared library.

    Raises:
        NotBuilt: It cannot be built.
        CannotRunHere: Another process has held the build's lock for that long.
    """
    return extensions.build(
        SOURCE,
        name=_NAME,
        seam="m2rnn",
        flags=_FLAGS,
        link_flags=("-fopenmp",),
        patience=patience,
    )


if __name__ == "__main__":
    print(build())
