"""The operator's inputs and state, and the checks that they pass before any backend runs.

The letters of the shapes: B rows of S steps, H heads of P channels, G groups of B and C, R ranks
(1 where there is no MIMO), N channels of a head's state of which 2 · A rotate.
"""

import functools
from typing import TypeVar

import attrs
import torch
from torch import Tensor

from megatron_seams.runtime.documents import Spans, document_spans

T = TypeVar("T", bound=attrs.AttrsInstance)


@attrs.frozen(kw_only=True, eq=False)  # a tensor's own == compares elements
class Mimo:
    """The projections between a head's P channels and its R ranks.

    Attributes:
        x: [H, R, P], multiplies x on the way in.
        z: [H, R, P], multiplies the gate.
        o: [H, R, P], multiplies the ranks' outputs, which are then added.
    """

    x: Tensor
    z: Tensor
    o: Tensor


@attrs.frozen(kw_only=True, eq=False)
class State:
    """The end of each sequence, from which another call continues it.

    Q is the number of sequences: the rows of the batch, or the documents of a packed row.

    Attributes:
        angle: [Q, H, A], how far each pair of channels has turned, in radians from 0 to 2π.
        h: [Q, H, P, N].
        b: [Q, H, R, N], the last step's B, with its bias and turned.
        x: [Q, H, P], the last step's x, before any projection to ranks.
    """

    angle: Tensor
    h: Tensor
    b: Tensor
    x: Tensor


@attrs.frozen(kw_only=True, eq=False, slots=False)
class Inputs:
    """The inputs of one call, as every backend takes them; packed rows come with B = 1.

    Attributes:
        x: [B, S, H, P].
        B: [B, S, R, G, N], in x's dtype.
        C: [B, S, R, G, N], in x's dtype.
        log_decay: A Δ, [B, S, H], not above 0, float32 or float64.
        dt: Δ, [B, S, H], above 0, float32 or float64.
        trap: [B, S, H], λ before its sigmoid.
        angle: [B, S, A], the speed of rotation before its tanh; all heads share it.
        B_bias: [H, R, N].
        C_bias: [H, R, N].
        D: [H].
        z: The gate, [B, S, H, P]; None for none.
        mimo: None where R is 1 and each head's x enters as it is.
        state: What the sequences continue; None where they begin.
        cu_seqlens: [documents + 1], the boundaries of a packed row; None for rows of one document.
        chunk: L, the steps that the chunked backends take at once.
        keep: Whether the last states are asked for.
    """

    x: Tensor
    B: Tensor
    C: Tensor
    log_decay: Tensor
    dt: Tensor
    trap: Tensor
    angle: Tensor
    B_bias: Tensor
    C_bias: Tensor
    D: Tensor
    z: Tensor | None
    mimo: Mimo | None
    state: State | None
    cu_seqlens: Tensor | None
    chunk: int
    keep: bool

    @functools.cached_property
    def spans(self) -> Spans:
        """The ``(start, stop)`` of each document, on the host: waits for an accelerator."""
        if self.cu_seqlens is None:
            return ((0, self.x.shape[1]),)
        return document_spans(self.cu_seqlens, self.x.shape[1])

    @property
    def sequences(self) -> int:
        """Q, the sequences of the call."""
        return self.x.shape[0] if self.cu_seqlens is None else len(self.cu_seqlens) - 1

    @property
    def dtype(self) -> torch.dtype:
        """The state's dtype: float32, or float64 as soon as one input is."""
        dtype = torch.float32
        for tensor in (self.x, self.log_decay, self.dt, self.B_bias, self.C_bias, self.D):
            dtype = torch.promote_types(dtype, tensor.dtype)
        return dtype

    def rows(self, document: int) -> slice:
        """Where a document's sequences stand in a state."""
        return slice(document * self.x.shape[0], (document + 1) * self.x.shape[0])

    def wide(self) -> "Inputs":
        """The same call with every tensor in the state's dtype."""
        mimo = None if self.mimo is None else _cast(self.mimo, self.dtype)
        state = None if self.state is None else _cast(self.state, self.dtype)
        return attrs.evolve(_cast(self, self.dtype), mimo=mimo, state=state)

    def check(self) -> None:
        """Refuse inputs that no backend computes.

        Raises:
            TypeError: x, B and C of different dtypes, or a step or decay of 16 bits.
            ValueError: Shapes or devices that do not fit, several ranks without their projections,
                or a chunk below one step.
        """
        if self.chunk < 1:
            message = f"chunk counts steps and is at least 1; found {self.chunk}"
            raise ValueError(message)
        self._check_dtypes()
        self._check_shapes()
        devices = {str(tensor.device) for tensor in self._tensors().values()}
        if len(devices) > 1:
            message = f"the inputs are on one device; found {', '.join(sorted(devices))}"
            raise ValueError(message)
        if self.cu_seqlens is not None and self.cu_seqlens.device.type == "cpu":
            document_spans(self.cu_seqlens, self.x.shape[1])

    def _tensors(self) -> dict[str, Tensor]:
        tables = {"": self, "mimo.": self.mimo, "state.": self.state}
        return {
            f"{prefix}{name}": value
            for prefix, table in tables.items()
            if table is not None
            for name, value in attrs.asdict(table, recurse=False).items()
            if isinstance(value, Tensor) and name != "cu_seqlens"
        }

    def _check_dtypes(self) -> None:
        if not self.x.dtype == self.B.dtype == self.C.dtype:
            message = (
                f"x, B and C share one dtype; found {self.x.dtype}, {self.B.dtype}, {self.C.dtype}"
            )
            raise TypeError(message)
        wide = (torch.float32, torch.float64)
        if self.log_decay.dtype not in wide or self.dt.dtype not in wide:
            message = (
                "log_decay and dt are float32 or float64, since sums of 16-bit steps drift; found "
                f"{self.log_decay.dtype} and {self.dt.dtype}"
            )
            raise TypeError(message)

    def _check_shapes(self) -> None:
        found = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        if len(found["x"]) != 4 or len(found["B"]) != 5 or len(found["angle"]) != 3:
            message = f"expected x [B, S, H, P], B [B, S, R, G, N], angle [B, S, A]; found {found}"
            raise ValueError(message)
        rows, steps, H, P = found["x"]
        R, G, N = found["B"][2:]
        A, Q = found["angle"][-1], self.sequences
        expected = {
            "x": (rows, steps, H, P),
            "B": (rows, steps, R, G, N),
            "C": (rows, steps, R, G, N),
            **dict.fromkeys(("log_decay", "dt", "trap"), (rows, steps, H)),
            "angle": (rows, steps, A),
            **dict.fromkeys(("B_bias", "C_bias"), (H, R, N)),
            "D": (H,),
            "z": (rows, steps, H, P),
            **dict.fromkeys(("mimo.x", "mimo.z", "mimo.o"), (H, R, P)),
            "state.angle": (Q, H, A),
            "state.h": (Q, H, P, N),
            "state.b": (Q, H, R, N),
            "state.x": (Q, H, P),
        }
        if any(shape != expected[name] for name, shape in found.items()):
            message = f"expected shapes that fit x and B, {expected}; found {found}"
            raise ValueError(message)
        if steps == 0:
            message = "expected at least one step"
            raise ValueError(message)
        if H % G or N % 2 or 2 * A > N:
            message = (
                f"groups divide heads, and at most the state's channels turn in pairs; found {H} "
                f"heads, {G} groups, {N} channels, {A} angles"
            )
            raise ValueError(message)
        if self.mimo is None and R != 1:
            message = f"{R} ranks need the projections of mimo"
            raise ValueError(message)
        if self.cu_seqlens is not None and rows != 1:
            message = f"a packed row comes alone; found {rows} rows with cu_seqlens"
            raise ValueError(message)


def _cast(table: T, dtype: torch.dtype) -> T:
    values = attrs.asdict(table, recurse=False)
    tensors = {
        name: value.to(dtype)
        for name, value in values.items()
        if isinstance(value, Tensor) and name != "cu_seqlens"
    }
    return type(table)(**(values | tensors))
