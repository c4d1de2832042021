"""The ``cuda`` backend: the authors' own kernels, where ``mamba_ssm`` is installed.

Without MIMO they are in Triton, with it in TileLang. ``mamba_ssm`` is imported when they are first
called, since to import it takes seconds and needs a GPU.
"""

import importlib
import importlib.metadata
import importlib.util
import math
from types import ModuleType
from typing import Any, Final

import torch
from packaging.version import Version
from torch import Tensor

from megatron_seams_mamba3.ops.built import keep_built
from megatron_seams_mamba3.ops.contract import Inputs, State

#: The first release with kernels that take packed rows with MIMO.
NEEDED: Final = Version("2.3.2")


def device_fault(device: torch.device) -> str | None:
    """Say why the kernels do not run on a device; None where they do."""
    if device.type != "cuda":
        return "the authors' kernels compute on a GPU"
    try:
        found = Version(importlib.metadata.version("mamba-ssm"))
    except importlib.metadata.PackageNotFoundError:
        return "the package mamba-ssm is not installed"
    if found < NEEDED:
        return f"mamba-ssm is {found}, and the kernels are those of {NEEDED} or later"
    return None


def inputs_fault(inputs: Inputs) -> str | None:
    """Say why the kernels do not take a call; None where they do."""
    if inputs.x.dtype != torch.bfloat16:
        return f"the authors' kernels round to bfloat16, and the inputs are {inputs.x.dtype}"
    # Triton's ranges are powers of 2, and its products are of 16 or more.
    least = 16 if inputs.mimo is None else 8
    if inputs.chunk < least or inputs.chunk & (inputs.chunk - 1):
        return f"a chunk's steps are a power of 2 there, {least} or more; found {inputs.chunk}"
    if inputs.mimo is None:
        wide = (inputs.x.shape[-1], inputs.B.shape[-1])
        odd = [size for size in wide if size < least or size & (size - 1)]
        return f"head and state are powers of 2 there, 16 or more; found {wide}" if odd else None
    if importlib.util.find_spec("tilelang") is None:
        return "the package tilelang, of the kernels with MIMO, is not installed"
    if inputs.state is not None:
        return "the kernels with MIMO continue no sequence"
    if inputs.keep and inputs.cu_seqlens is not None:
        return "the kernels with MIMO do not give the last states of packed documents"
    # Without gradients too: a forward pass that is computed again is to be the first one.
    if inputs.z is None and inputs.cu_seqlens is not None:
        return "the kernels with MIMO have no backward pass for packed rows without a gate"
    if inputs.angle.shape[-1] * 2 not in (inputs.B.shape[-1], inputs.B.shape[-1] // 2):
        return "the kernels with MIMO turn all of the state's channels, or half"
    return None


def recurrence(inputs: Inputs) -> tuple[Tensor, State | None]:
    """Run the recurrence; see :func:`.operator.mamba3`."""
    x = inputs
    heads = x.x.shape[2]
    shared = {
        "V": x.x,
        "ADT": x.log_decay.float().transpose(1, 2).contiguous(),
        "DT": x.dt.float().transpose(1, 2).contiguous(),
        "Trap": x.trap.to(x.x.dtype).transpose(1, 2).contiguous(),
        "Angles": x.angle.float().unsqueeze(2).expand(-1, -1, heads, -1),
        "D": x.D.float(),
        "Z": x.z,
        "chunk_size": x.chunk,
        "cu_seqlens": None if x.cu_seqlens is None else x.cu_seqlens.to(torch.int32),
    }
    return _siso(x, shared) if x.mimo is None else _mimo(x, shared)


def _siso(x: Inputs, shared: dict[str, Any]) -> tuple[Tensor, State | None]:
    module = importlib.import_module("mamba_ssm.ops.triton.mamba3.mamba3_siso_combined")
    given = x.state
    done = module.mamba3_siso_combined(
        Q=x.C.squeeze(2),
        K=x.B.squeeze(2),
        Q_bias=x.C_bias.float().squeeze(1),
        K_bias=x.B_bias.float().squeeze(1),
        Input_States=None
        if given is None
        else (given.angle, given.h, given.b.squeeze(2).to(x.x.dtype), given.x.to(x.x.dtype)),
        return_final_states=x.keep,
        **shared,
    )
    if not x.keep:
        y: Tensor = done
        return y, None
    y, _, h, b, last = done
    return y, State(angle=last_angle(x), h=h, b=b.unsqueeze(2), x=last)


def last_angle(inputs: Inputs) -> Tensor:
    """Compute how far each sequence has turned at its end, [Q, H, A] float32.

    The kernels without MIMO round it to bfloat16, which decoding would add up token by token. The
    products are float64, since torch may round those of float32 to TF32.
    """
    speed, dt = math.pi * torch.tanh(inputs.angle.double()), inputs.dt.double()
    if inputs.cu_seqlens is None:
        turned = torch.einsum("bsa,bsh->bha", speed, dt)
    else:
        steps = torch.arange(dt.shape[1], device=dt.device)
        document = torch.bucketize(steps, inputs.cu_seqlens[1:], right=True)
        turned = dt.new_zeros(inputs.sequences, dt.shape[2], speed.shape[2])
        turned = turned.index_add(0, document, dt[0].unsqueeze(-1) * speed[0].unsqueeze(1))
    if inputs.state is not None:
        turned = turned + inputs.state.angle
    return torch.remainder(turned, 2 * math.pi).float()


def _mimo(x: Inputs, shared: dict[str, Any]) -> tuple[Tensor, State | None]:
    module = _with_mimo()
    assert x.mimo is not None  # noqa: S101 - by the caller's choice, for the type alone
    heads, groups = x.x.shape[2], x.B.shape[3]
    # Their backward pass knows one group, or one for each head, and makes a gradient for each head
    # either way. Other groups are repeated, and autograd adds the heads' gradients up again; the
    # forward pass reads the same numbers.
    Q, K = x.C, x.B
    if groups not in (1, heads) and torch.is_grad_enabled():
        Q, K = (each.repeat_interleave(heads // groups, dim=3) for each in (Q, K))
    tensors = {
        "Q": Q,
        "K": K,
        "Q_bias": x.C_bias.float(),
        "K_bias": x.B_bias.float(),
        "MIMO_V": x.mimo.x.float(),
        "MIMO_Z": x.mimo.z.float(),
        "MIMO_Out": None if x.z is None else x.mimo.o.float(),
        **shared,
    }
    done = module.mamba3_mimo(
        rotary_dim_divisor=x.B.shape[-1] // x.angle.shape[-1],
        dtype=x.x.dtype,
        return_state=x.keep,
        **{name: _plain(it) if isinstance(it, Tensor) else it for name, it in tensors.items()},
    )
    y, *state = done if x.keep else (done,)
    y = _PlainGradient.apply(y)
    if not x.keep:
        return y, None
    angle, h, b, last = state
    return y, State(angle=angle, h=h, b=b.transpose(1, 2), x=last)


def _with_mimo() -> ModuleType:
    """The authors' module with MIMO, which keeps the kernels that it builds."""
    folder = "mamba_ssm.ops.tilelang.mamba3.mamba3_mimo"
    for part in ("fwd", "bwd", "fwd_varlen", "bwd_varlen"):
        keep_built(importlib.import_module(f"{folder}_{part}"))
    return importlib.import_module(folder)


def _plain(x: Tensor) -> Tensor:
    """``x`` with the strides of a new tensor of its shape.

    TileLang compares all strides with those, even along a dimension of size 1, where torch calls
    any stride contiguous.
    """
    return x.reshape(-1).view(x.shape)


class _PlainGradient(torch.autograd.Function):
    """``x``, whose gradient comes back with the strides of a new tensor."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return _plain(gradients[0])
