"""The operator's inputs, and the checks that they pass before any backend runs.

Inside, inputs are [B, S, heads, ...] and states [D, B, N, K, V], with D documents in each row.
Packed inputs come with B = 1; where nothing is packed, D is 1.
"""

import functools

import attrs
import torch
from torch import Tensor

from megatron_seams.runtime.documents import Spans
from megatron_seams_m2rnn.ops.documents import Documents
from megatron_seams_m2rnn.ops.heads import HeadCounts


@attrs.frozen(kw_only=True, eq=False)  # a tensor's own == compares elements
class Inputs:
    """The inputs of one call, as every backend takes them.

    Attributes:
        q: Query, [B, S, Nq, K].
        k: Key, [B, S, Nk, K], in q's dtype.
        v: Value, [B, S, Nv, V], in q's dtype.
        f: Forget gates, [B, S, Nf], float32 or float64.
        W: Transition matrices, [Nw, V, V].
        h0: Initial states, [D, B, N, K, V]; None for zero.
        documents: The D documents of each row.
        clip: The bound on each element of the gradient that a step hands back; None for no bound.
        every: C, the steps between the states that forward keeps for backward.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    f: Tensor
    W: Tensor
    h0: Tensor | None
    documents: Documents
    clip: float | None
    every: int

    @property
    def B(self) -> int:  # noqa: N802 - the paper's letter
        """Rows of the batch."""
        return self.q.shape[0]

    @property
    def S(self) -> int:  # noqa: N802 - the paper's letter
        """Steps of a row."""
        return self.q.shape[1]

    @property
    def K(self) -> int:  # noqa: N802 - the paper's letter
        """Rows of a head's state."""
        return self.q.shape[-1]

    @property
    def V(self) -> int:  # noqa: N802 - the paper's letter
        """Columns of a head's state."""
        return self.v.shape[-1]

    @functools.cached_property
    def N(self) -> int:  # noqa: N802 - the paper's letter
        """Heads of the state."""
        heads = (x.shape[2] for x in (self.q, self.k, self.v, self.f))
        return max(*heads, self.W.shape[0])

    @property
    def D(self) -> int:  # noqa: N802 - the letter of the shapes
        """Documents of a row."""
        return self.documents.count

    @property
    def spans(self) -> Spans:
        """The ``(start, stop)`` of each document, on the host: see :attr:`.Documents.spans`."""
        return self.documents.spans

    @property
    def dtype(self) -> torch.dtype:
        """The state's dtype: float32, or float64 as soon as one input is."""
        dtype = torch.float32
        for x in (self.q, self.f, self.W, self.h0):  # k and v have q's
            dtype = dtype if x is None else torch.promote_types(dtype, x.dtype)
        return dtype

    def kept_states(self) -> int:
        """The number of states that forward keeps for backward; a document's first one is h0."""
        return sum(max(0, -((start - stop) // self.every) - 1) for start, stop in self.spans)

    def check(self) -> None:
        """Refuse inputs that no backend computes.

        Raises:
            TypeError: q, k and v of different dtypes, or a 16-bit gate.
            ValueError: Shapes, head counts or devices that do not fit, a bound that is not
                positive, or an interval below one step.
        """
        _check_settings(self.clip, self.every)
        _check_devices(q=self.q, k=self.k, v=self.v, W=self.W, f=self.f, h0=self.h0)
        _check_dtypes(self.q, self.k, self.v, self.f)
        _check_shapes(self)


def side_by_side(x: Tensor) -> Tensor:
    """Return ``x``, [B, S, heads, dim], with each step's heads and their elements contiguous."""
    beside = x.stride(3) == 1 and (x.shape[2] == 1 or x.stride(2) == x.shape[3])
    return x if beside else x.contiguous()


def _check_settings(clip: float | None, every: int) -> None:
    if clip is not None and not clip > 0:
        message = f"clip bounds the size of a gradient's elements and is above 0; found {clip}"
        raise ValueError(message)
    if every < 1:
        message = f"checkpoint_every counts steps and is at least 1; found {every}"
        raise ValueError(message)


def _check_devices(**inputs: Tensor | None) -> None:
    found = {name: str(x.device) for name, x in inputs.items() if x is not None}
    if len(set(found.values())) > 1:
        message = f"the inputs are on one device; found {found}"
        raise ValueError(message)


def _check_dtypes(q: Tensor, k: Tensor, v: Tensor, f: Tensor) -> None:
    if not q.dtype == k.dtype == v.dtype:
        message = f"q, k and v share one dtype; found {q.dtype}, {k.dtype} and {v.dtype}"
        raise TypeError(message)
    if f.dtype not in (torch.float32, torch.float64):
        message = (
            f"the gate is float32 or float64, since in 16 bits a gate near 1 rounds to 1 and its "
            f"state never moves; found {f.dtype}. Compute the gate in float32"
        )
        raise TypeError(message)


def _check_shapes(inputs: Inputs) -> None:
    q, k, v, f, W, h0 = inputs.q, inputs.k, inputs.v, inputs.f, inputs.W, inputs.h0
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
        expected["h0"] = (inputs.D, q.shape[0], heads.state, K, V)
    if found != expected:
        message = (
            f"expected shapes that fit q and v, {expected} (packed inputs with B = 1, h0 as "
            f"[documents, B, N, K, V]); found {found}"
        )
        raise ValueError(message)
