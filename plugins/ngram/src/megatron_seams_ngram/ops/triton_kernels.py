"""The kernels of the tables in Triton, for a GPU, with the numbers of :mod:`.torch_kernels`.

Nothing here waits for the GPU, so that forward and backward can be captured in a CUDA graph. Beside
the results there is memory for the sorted places alone, whatever the size of the tables.

In 16 bits a row's gradients are summed in float32 and rounded once, where torch rounds each sum.
"""

from typing import Any, Final

import torch
import triton  # type: ignore[import-untyped]  # Triton ships no types
from torch import Tensor

from megatron_seams_ngram.ops import triton_programs
from megatron_seams_ngram.ops.indices import Constants

#: Rows with more gradients than this have a program of their own.
LONG: Final = 16
#: Bytes of rows that a program moves at a time.
_BYTES: Final = 8192
_KEYS: Final = 1024


def hash_indices(input_ids: Tensor, starts: Tensor | None, constants: Constants) -> Tensor:
    """Hash positions; as :func:`.indices.hash_indices`."""
    indices, _ = _hashed(input_ids, starts, constants, None, 0, sequence_first=False)
    return indices


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
    indices, rows = _hashed(
        input_ids, starts, constants, table, first, sequence_first=sequence_first
    )
    return rows, indices


def _hashed(
    input_ids: Tensor,
    starts: Tensor | None,
    constants: Constants,
    table: Tensor | None,
    first: int,
    *,
    sequence_first: bool,
) -> tuple[Tensor, Tensor]:
    batch, length = input_ids.shape
    tables, highest = len(constants.primes), constants.multipliers.shape[1]
    ids = input_ids.contiguous()
    starts = None if starts is None else starts.contiguous()
    indices = torch.empty(batch, length, tables, dtype=torch.int64, device=ids.device)
    # An absent tensor is neither read nor written: any tensor stands for it.
    source, width, out = indices, 1, indices.unsqueeze(-1)
    if table is not None:
        source, width = table.contiguous(), table.shape[1]
        sizes = (length, batch) if sequence_first else (batch, length)
        out = source.new_empty(*sizes, tables, width)
        out = out.transpose(0, 1) if sequence_first else out
    block, columns = _block(width, source)
    if indices.numel():
        triton_programs.hash_and_gather[(triton.cdiv(batch * length, block) * tables,)](
            ids,
            ids if starts is None else starts,
            constants.multipliers,
            constants.biases,
            constants.hash_of,
            constants.primes,
            constants.offsets,
            constants.pad_id,
            source,
            indices,
            out,
            batch * length,
            length,
            0 if starts is None or len(starts) == 1 else length,
            first,
            len(source),
            out.stride(0) // (tables * width),
            out.stride(1) // (tables * width),
            TABLES=tables,
            WIDTH=width,
            HIGHEST=highest,
            HAS_STARTS=starts is not None,
            GATHERS=table is not None,
            BLOCK=block,
            COLUMNS=columns,
            num_warps=4,
        )
    return indices, out


def gather(table: Tensor, indices: Tensor, first: int) -> Tensor:
    """Look rows up; as :func:`.torch_kernels.gather`."""
    rows, width = table.shape
    table, indices = table.contiguous(), indices.contiguous()
    out = table.new_empty(*indices.shape, width)
    block, columns = _block(width, table)
    if out.numel():
        triton_programs.gather[(triton.cdiv(indices.numel(), block),)](
            table,
            indices,
            out,
            indices.numel(),
            first,
            rows,
            WIDTH=width,
            BLOCK=block,
            COLUMNS=columns,
            num_warps=4,
        )
    return out


def scatter(rows: Tensor, indices: Tensor, first: int, table: Tensor) -> None:
    """Add gradients; as :func:`.torch_kernels.scatter`."""
    _, length, tables = indices.shape
    width, places = table.shape[1], indices.numel()
    if not places:
        return
    token = tables * width
    if rows.stride()[2:] != (width, 1) or any(stride % token for stride in rows.stride()[:2]):
        rows = rows.contiguous()
    # Half the bits are sorted in half the time.
    narrow = len(table) < 2**31
    keys = torch.empty(places, dtype=torch.int32 if narrow else torch.int64, device=indices.device)
    triton_programs.sort_keys[(triton.cdiv(places, _KEYS),)](
        indices.contiguous(), keys, places, first, len(table), BLOCK=_KEYS, num_warps=4
    )
    # Stable, so that a row's places stay in the order of their positions.
    keys, order = torch.sort(keys, stable=True)
    total = table if table.is_contiguous() else table.contiguous()
    arguments = (
        keys,
        order,
        rows,
        total,
        places,
        length,
        len(table),
        rows.stride(0) // token,
        rows.stride(1) // token,
    )
    block, columns = _block(width, total)
    sizes: dict[str, Any] = {"TABLES": tables, "WIDTH": width, "LONG": LONG, "COLUMNS": columns}
    triton_programs.add_short[(triton.cdiv(places, block),)](
        *arguments, **sizes, BLOCK=block, num_warps=4
    )
    triton_programs.add_long[(triton.cdiv(places, LONG),)](*arguments, **sizes, num_warps=1)
    if total is not table:
        table.copy_(total)


def _block(width: int, table: Tensor) -> tuple[int, int]:
    """How many rows a program takes, and their columns with those that fill them up."""
    columns: int = triton.next_power_of_2(width)
    block = _BYTES // (columns * table.element_size())
    return min(128, max(1, triton.next_power_of_2(block + 1) // 2)), columns
