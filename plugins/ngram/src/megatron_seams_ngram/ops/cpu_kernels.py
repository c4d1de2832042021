"""The kernels of the tables in C++, with the numbers of :mod:`.torch_kernels` bit for bit.

It is built on first use (:mod:`megatron_seams.runtime.extensions`), or ahead of time, for an image
that has no compiler later::

    python -m megatron_seams_ngram.ops.cpu_kernels
"""

import ctypes
import functools
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from megatron_seams.runtime import extensions
from megatron_seams_ngram.ops import torch_kernels
from megatron_seams_ngram.ops.indices import Constants

SOURCE: Final = Path(__file__).parent / "csrc" / "ngram.cpp"
#: Without contraction: a fused multiply-add would round once where torch rounds twice.
_FLAGS: Final = ("-O3", "-std=c++17", "-pthread", "-ffp-contract=off")

#: The types of rows and table that the C++ adds; torch adds the others.
_SCATTERED: Final = frozenset(
    {
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    }
)


@functools.cache
def library() -> ctypes.CDLL:
    """The C++ of this machine, built if it is not there.

    Raises:
        NotBuilt: It cannot be built.
        CannotRunHere: Another process has held the build's lock for minutes.
    """
    return ctypes.CDLL(str(build()))


def build() -> Path:
    """Build the C++ where it is not built yet; raises as :func:`library`."""
    return extensions.build(
        SOURCE,
        name="megatron_seams_ngram_cpu",
        seam="ngram_hash",
        flags=_FLAGS,
        link_flags=("-pthread",),
    )


def hash_indices(input_ids: Tensor, starts: Tensor | None, constants: Constants) -> Tensor:
    """Hash positions; as :func:`.indices.hash_indices`."""
    batch, length = input_ids.shape
    hashes, highest = constants.multipliers.shape
    tables = len(constants.primes)
    ids = input_ids.contiguous()
    starts = None if starts is None else starts.contiguous()
    out = torch.empty(batch, length, tables, dtype=torch.int64)
    library().ngram_indices(
        _at(ids),
        None if starts is None else _at(starts),
        _count(0 if starts is None or len(starts) == 1 else length),
        _count(batch),
        _count(length),
        _count(int(constants.pad_id)),
        _at(constants.multipliers),
        _at(constants.biases),
        _count(hashes),
        _count(highest),
        _at(constants.hash_of),
        _at(constants.primes),
        _at(constants.offsets),
        _count(tables),
        _at(out),
        _threads(),
    )
    return out


def hash_and_gather(
    input_ids: Tensor,
    starts: Tensor | None,
    constants: Constants,
    table: Tensor,
    first: int,
    *,
    sequence_first: bool,
) -> tuple[Tensor, Tensor]:
    """Hash positions and look their rows up; as :func:`.torch_kernels.hash_and_gather`."""
    del sequence_first
    indices = hash_indices(input_ids, starts, constants)
    return gather(table, indices, first), indices


def gather(table: Tensor, indices: Tensor, first: int) -> Tensor:
    """Look rows up; as :func:`.torch_kernels.gather`, for any type of ``table``."""
    rows, width = table.shape
    table, indices = table.contiguous(), indices.contiguous()
    out = table.new_empty(*indices.shape, width)
    library().ngram_gather(
        _at(table),
        _count(width * table.element_size()),
        _count(first),
        _count(rows),
        _at(indices),
        _count(indices.numel()),
        _at(out),
        _threads(),
    )
    return out


def scatter(rows: Tensor, indices: Tensor, first: int, table: Tensor) -> None:
    """Add gradients; as :func:`.torch_kernels.scatter`."""
    if (rows.dtype, table.dtype) not in _SCATTERED or not table.is_contiguous():
        torch_kernels.scatter(rows, indices, first, table)
        return
    rows, indices = rows.contiguous(), indices.contiguous()
    names = (str(one.dtype).removeprefix("torch.") for one in (rows, table))
    add = getattr(library(), f"ngram_scatter_{'_'.join(names)}")
    add(
        _at(rows),
        _count(table.shape[1]),
        _at(indices),
        _count(indices.numel() // indices.shape[-1]),
        _count(indices.shape[-1]),
        _count(first),
        _count(len(table)),
        _at(table),
        _threads(),
    )


def put(values: Tensor, indices: Tensor, table: Tensor) -> None:
    """Write rows; as :func:`.torch_kernels.put`, for any type and a contiguous ``table``."""
    values, indices = values.to(table.dtype).contiguous(), indices.contiguous()
    library().ngram_put(
        _at(table),
        _count(table.shape[1] * table.element_size()),
        _at(indices),
        _count(len(indices)),
        _at(values),
        _threads(),
    )


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _count(number: int) -> ctypes.c_int64:
    return ctypes.c_int64(number)


def _threads() -> ctypes.c_int64:
    return _count(torch.get_num_threads())


if __name__ == "__main__":
    print(build())
