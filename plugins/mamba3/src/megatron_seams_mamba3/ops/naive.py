"""The ``reference`` backend: the recurrence as plain as it can be written.

One step at a time, every state kept, differentiated by autograd: for reading, and for testing the
other backends. It computes in the state's dtype throughout; give it float64 to compare with.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from megatron_seams_mamba3.ops.contract import Inputs, State
from megatron_seams_mamba3.ops.rotary import rotated


def recurrence(inputs: Inputs) -> tuple[Tensor, State | None]:
    """Run the recurrence; see :func:`.operator.mamba3`."""
    wide = inputs.wide()
    outputs, lasts = [], []
    for document, (start, stop) in enumerate(inputs.spans):
        state = _initial(wide, document)
        for t in range(start, stop):
            y, state = _step(wide, t, state)
            outputs.append(y)
        lasts.append(state)
    y = torch.stack(outputs, dim=1).to(inputs.x.dtype)
    return y, _joined(lasts) if inputs.keep else None


def _initial(x: Inputs, document: int) -> State:
    if x.state is not None:
        of = x.rows(document)
        given = x.state
        return State(angle=given.angle[of], h=given.h[of], b=given.b[of], x=given.x[of])
    rows, _, H, P = x.x.shape
    R, N = x.B.shape[2], x.B.shape[-1]
    zeros = x.x.new_zeros
    return State(
        angle=zeros(rows, H, x.angle.shape[-1]),
        h=zeros(rows, H, P, N),
        b=zeros(rows, H, R, N),
        x=zeros(rows, H, P),
    )


def _step(x: Inputs, t: int, before: State) -> tuple[Tensor, State]:
    """Take step t of every row: y, [B, H, P] or without a gate [B, R, H, P], and the state."""
    heads_of_group = x.x.shape[2] // x.B.shape[3]
    dt, lam = x.dt[:, t], torch.sigmoid(x.trap[:, t])  # [B, H]
    turn = math.pi * torch.tanh(x.angle[:, t])[:, None] * dt[..., None]
    angle = torch.remainder(before.angle + turn, 2 * math.pi)

    def turned(values: Tensor, bias: Tensor) -> Tensor:
        """[B, R, G, N] of this step to [B, H, R, N]."""
        of_heads = values.repeat_interleave(heads_of_group, dim=2).transpose(1, 2)
        return rotated(of_heads + bias, angle[:, :, None], halves=x.mimo is not None)

    b, c = turned(x.B[:, t], x.B_bias), turned(x.C[:, t], x.C_bias)
    u = _ranks(x, x.x[:, t])
    decay = torch.exp(x.log_decay[:, t])
    h = (
        decay[..., None, None] * before.h
        + ((1 - lam) * dt * decay)[..., None, None] * _outer(_ranks(x, before.x), before.b)
        + (lam * dt)[..., None, None] * _outer(u, b)
    )
    y = torch.einsum("bhpn,bhrn->bhrp", h, c) + x.D[:, None, None] * u
    if x.z is not None:
        gate = x.z[:, t, :, None] if x.mimo is None else x.z[:, t, :, None] * x.mimo.z
        y = y * functional.silu(gate)
        if x.mimo is not None:
            y = y * x.mimo.o
    added = x.mimo is None or x.z is not None
    state = State(angle=angle, h=h, b=b, x=x.x[:, t])
    return (y.sum(2) if added else y.transpose(1, 2)), state


def _ranks(x: Inputs, values: Tensor) -> Tensor:
    """Project [B, H, P] to [B, H, R, P]."""
    return values[:, :, None] if x.mimo is None else values[:, :, None] * x.mimo.x


def _outer(u: Tensor, b: Tensor) -> Tensor:
    """Add the ranks' products: [B, H, R, P] and [B, H, R, N] to [B, H, P, N]."""
    return torch.einsum("bhrp,bhrn->bhpn", u, b)


def _joined(states: list[State]) -> State:
    return State(
        angle=torch.cat([state.angle for state in states]),
        h=torch.cat([state.h for state in states]),
        b=torch.cat([state.b for state in states]),
        x=torch.cat([state.x for state in states]),
    )
