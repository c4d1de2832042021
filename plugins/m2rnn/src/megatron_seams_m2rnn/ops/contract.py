"""What every implementation of the operator demands of its inputs, whatever runs it."""

import torch
from torch import Tensor

from megatron_seams.runtime.documents import Spans
from megatron_seams_m2rnn.ops.heads import HeadCounts


def state_dtype(q: Tensor, f: Tensor, W: Tensor, h0: Tensor | None) -> torch.dtype:
    """What the state is kept in: float32, or float64 as soon as one input is.

    Args:
        q: Query; k and v have its dtype.
        f: Gates.
        W: Transition matrices.
        h0: Initial states, or None.
    """
    dtype = torch.float32
    for x in (q, f, W) if h0 is None else (q, f, W, h0):
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def state_heads(q: Tensor, k: Tensor, v: Tensor, f: Tensor, W: Tensor) -> int:
    """How many heads the state has, N, from inputs in the layout of :func:`check_shapes`."""
    return max(q.shape[2], k.shape[2], v.shape[2], f.shape[2], W.shape[0])


def kept_states(spans: Spans, every: int) -> int:
    """How many states forward keeps for backward: each document's first is given."""
    return sum(max(0, -((start - stop) // every) - 1) for start, stop in spans)


def side_by_side(x: Tensor) -> Tensor:
    """Give ``x``, [B, S, heads, dim], with each step's heads and their elements contiguous."""
    beside = x.stride(3) == 1 and (x.shape[2] == 1 or x.stride(2) == x.shape[3])
    return x if beside else x.contiguous()


def check_settings(clip: float | None, every: int) -> None:
    """Refuse settings that mean nothing.

    Raises:
        ValueError: A bound that is not positive, or an interval below one step.
    """
    if clip is not None and not clip > 0:
        message = f"clip bounds the size of a gradient's elements and is above 0; found {clip}"
        raise ValueError(message)
    if every < 1:
        message = f"checkpoint_every counts steps and is at least 1; found {every}"
        raise ValueError(message)


def check_dtypes(q: Tensor, k: Tensor, v: Tensor, f: Tensor) -> None:
    """Refuse dtypes that would lose the state.

    Raises:
        TypeError: q, k and v of different dtypes, or a 16-bit gate.
    """
    if not q.dtype == k.dtype == v.dtype:
        message = f"q, k and v share one dtype; found {q.dtype}, {k.dtype} and {v.dtype}"
        raise TypeError(message)
    if f.dtype not in (torch.float32, torch.float64):
        message = (
            f"the gate is float32 or float64, since in 16 bits a gate near 1 rounds to 1 and its "
            f"state never moves; found {f.dtype}. Compute the gate in float32"
        )
        raise TypeError(message)


def check_devices(**inputs: Tensor | None) -> None:
    """Refuse inputs that are not all in one place.

    Args:
        inputs: The tensors by their names.

    Raises:
        ValueError: More than one device.
    """
    found = {name: str(x.device) for name, x in inputs.items() if x is not None}
    if len(set(found.values())) > 1:
        message = f"the inputs are on one device; found {found}"
        raise ValueError(message)


def check_shapes(
    q: Tensor, k: Tensor, v: Tensor, f: Tensor, W: Tensor, h0: Tensor | None, documents: int
) -> None:
    """Hold everything to the [B, S, heads, ...] layout and [D, B, N, K, V] states.

    Args:
        q: Query, [B, S, Nq, K]; here and below, packed inputs come with B = 1.
        k: Key, [B, S, Nk, K].
        v: Value, [B, S, Nv, V].
        f: Forget gates, [B, S, Nf].
        W: Transition matrices, [Nw, V, V].
        h0: Initial states, [D, B, N, K, V], or None.
        documents: D, 1 where nothing is packed.

    Raises:
        ValueError: Shapes or head counts that do not fit.
    """
    found = {name: tuple(x.shape) for name, x in zip("qkvfW", (q, k, v, f, W), strict=True)}
    dims = {"q": 4, "k": 4, "v": 4, "f": 3, "W": 3}
    if any(len(shape) != dims[name] for name, shape in found.items()):
        message = f"expected [B, S, heads, dim], f without dim and W [heads, V, V]; found {found}"
        raise ValueError(message)
    K, V = q.shape[-1], v.shape[-1]
    expected = {
        "q": (*q.shape[:2], q.shape[2], K),
        "k": (*q.shape[:2], k.shape[2], K),
        "v": (*q.shape[:2], v.shape[2], V),
        "f": (*q.shape[:2], f.shape[2]),
        "W": (W.shape[0], V, V),
    }
    heads = HeadCounts(q=q.shape[2], k=k.shape[2], v=v.shape[2], W=W.shape[0], f=f.shape[2])
    if h0 is not None:
        found["h0"] = tuple(h0.shape)
        expected["h0"] = (documents, q.shape[0], heads.state, K, V)
    if found != expected:
        message = (
            f"expected shapes that fit q and v, {expected} (packed inputs with B = 1, h0 as "
            f"[documents, B, N, K, V]); found {found}"
        )
        raise ValueError(message)
