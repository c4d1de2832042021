"""Large pages for tables that are read at random."""

import ctypes
import functools
import mmap
from collections.abc import Callable
from typing import Final

from torch import Tensor

#: The size of a large page where pages have 4 KiB, and what advice is aligned to.
LARGE: Final = 2**21


def advise(tensor: Tensor) -> None:
    """Ask for large pages below a new tensor, before anything is written to it.

    Almost every row that a step looks up lies on a page of its own, of so many pages that the
    processor must fetch where the page is before it fetches the row. Pages 512 times as large spare
    it the first of the two. This is advice: a system without large pages changes nothing.

    Args:
        tensor: Contiguous; of less than a large page, or not on a CPU, it is left as it is.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux's
    if tensor.device.type != "cpu" or advice is None:
        return
    start = -(-tensor.data_ptr() // LARGE) * LARGE
    end = (tensor.data_ptr() + tensor.nbytes) // LARGE * LARGE
    if start < end:
        _madvise()(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(advice))


@functools.cache
def _madvise() -> Callable[..., object]:
    # The C library's: `mmap` advises only on memory that it mapped itself.
    found: Callable[..., object] = ctypes.CDLL(None).madvise
    return found
