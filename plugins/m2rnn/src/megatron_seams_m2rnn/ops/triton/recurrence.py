"""The ``triton`` backend: the recurrence on a GPU (:mod:`.kernels`).

Nothing here waits for the GPU, so that forward and backward can be captured in a CUDA graph.

Backward goes through the row in segments, from the last one: what each head of the state asks of a
head of q, k, v or f that it shares is kept for one segment only, then summed in the order of heads.
"""

from typing import Any, Final

import attrs
import torch
import triton  # type: ignore[import-untyped]  # Triton ships no types
import triton.language as tl  # type: ignore[import-untyped]  # likewise
from torch import Tensor

from megatron_seams_m2rnn.ops.autograd import Gradients, Wanted, differentiable
from megatron_seams_m2rnn.ops.contract import Inputs, side_by_side
from megatron_seams_m2rnn.ops.triton import kernels

#: The largest K and V: a state is in the registers of one block of threads.
LARGEST: Final = 128
#: The number of chunks in a segment.
_CHUNKS: Final = 16


def recurrence(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Run the recurrence; as :func:`..cpu.recurrence.recurrence`, on a GPU.

    The operands of matrix products are rounded to bfloat16 where q has 16 bits (float16 has not the
    range of a gradient), and not at all where it is float32 or float64.

    Raises:
        ValueError: K or V above :data:`LARGEST`.
    """
    if max(inputs.K, inputs.V) > LARGEST:
        message = (
            f"backend 'triton' takes K and V up to {LARGEST}; found K = {inputs.K}, V = {inputs.V}"
        )
        raise ValueError(message)
    return differentiable(_forward, _backward, inputs)


def _forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    x, launch = inputs, Launch.of(inputs)
    y = x.v.new_empty(x.B, x.S, x.N, x.V)
    last = launch.new(x.D, x.B, x.N, x.K, x.V)
    kept = launch.new(max(0, (x.S - 1) // x.every), x.B, x.N, x.K, x.V) if keep else None
    if x.S == 0:
        last = last.zero_() if x.h0 is None else last.copy_(x.h0)
    elif last.numel():
        kernels.forward[(x.D * x.B * x.N,)](
            *launch.inputs,
            y,
            last,
            last if kept is None else kept,
            x.B,
            x.S,
            *launch.strides,
            **launch.forward(keep=keep),
        )
    return y, last, kept


def _backward(
    inputs: Inputs, kept: Tensor, dy: Tensor | None, dlast: Tensor | None, wanted: Wanted
) -> Gradients:
    x, launch = inputs, Launch.of(inputs)
    carry = launch.new(x.D, x.B, x.N, x.K, x.V)
    carry = carry.zero_() if dlast is None else carry.copy_(dlast)
    gradients = {
        name: torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for name, tensor in (("q", x.q), ("k", x.k), ("v", x.v), ("f", x.f))
        if name in wanted
    }
    # An absent tensor is neither read nor written: any tensor stands for it.
    dW = launch.new(x.B, x.N, x.V, x.V).zero_() if "W" in wanted else carry
    block = (launch.constants["BLOCK_K"], launch.constants["BLOCK_V"])
    states = launch.new(min(x.every, x.S), x.B, x.N, *block)
    slopes = torch.empty_like(states)
    document = x.documents.of_steps(x.q.device)
    length = _CHUNKS * x.every
    for low in reversed(range(0, x.S, length)) if carry.numel() else ():
        high = min(low + length, x.S)
        shared = {
            name: launch.new(x.B, high - low, x.N, *gradient.shape[3:])
            for name, gradient in gradients.items()
            if gradient.shape[2] < x.N
        }
        asked = gradients | shared
        kernels.backward[(x.B * x.N,)](
            *launch.inputs,
            kept,
            carry if document is None else document,
            carry if dy is None else dy.contiguous(),
            carry,
            states,
            slopes,
            *(asked.get(name, carry) for name in "qkvf"),
            dW,
            x.B,
            x.S,
            *launch.strides,
            low,
            high,
            **launch.backward(wanted, clip=x.clip, has_dy=dy is not None),
        )
        for name, part in shared.items():
            heads = torch.unflatten(part, 2, (gradients[name].shape[2], -1))
            gradients[name][:, low:high] = heads.sum(3)
    found = [gradients.get(name) for name in "qkvf"]
    found.append(_summed(dW, x.W) if "W" in wanted else None)
    found.append(carry.to(x.h0.dtype) if x.h0 is not None and "h0" in wanted else None)
    return tuple(found)


def _summed(dW: Tensor, W: Tensor) -> Tensor:
    """Sum [B, N, V, V] over the rows and over the heads that each matrix serves."""
    return torch.unflatten(dW.sum(0), 0, (W.shape[0], -1)).sum(1).to(W.dtype)


@attrs.frozen(kw_only=True, eq=False)  # a tensor's own == compares elements
class Launch:
    """One call's inputs, as the kernels take them.

    Attributes:
        dtype: The state's.
        narrow: Inputs of 16 bits and a state in float32: products are of bfloat16 operands.
        inputs: The kernels' first arguments, ``q`` to ``cumulative``.
        strides: Batch and step of q, k and v, in elements.
        constants: What both kernels are compiled for, and the options to compile them with.
    """

    dtype: torch.dtype
    narrow: bool
    inputs: tuple[Tensor, ...]
    strides: tuple[int, ...]
    constants: dict[str, Any]

    @classmethod
    def of(cls, inputs: Inputs) -> "Launch":
        """Lay the inputs out and derive the constants that the kernels are compiled for."""
        q, f, W, dtype, N = inputs.q, inputs.f, inputs.W, inputs.dtype, inputs.N
        rows = [side_by_side(x) for x in (q, inputs.k, inputs.v)]
        cumulative = inputs.documents.on(q.device)
        # An absent tensor is not read: any tensor stands for it.
        initial = W if inputs.h0 is None else inputs.h0.contiguous()
        state = tl.float64 if dtype is torch.float64 else tl.float32
        rounded = tl.bfloat16 if q.dtype.itemsize == 2 else state
        narrow = q.dtype.itemsize == 2 and dtype is torch.float32
        block_k, block_v = (max(16, triton.next_power_of_2(x)) for x in (inputs.K, inputs.V))
        return cls(
            dtype=dtype,
            narrow=narrow,
            inputs=(
                *rows,
                f.contiguous(),
                W.contiguous(),
                initial,
                W if cumulative is None else cumulative,
            ),
            strides=tuple(stride for x in rows for stride in x.stride()[:2]),
            constants={
                "N": N,
                "K": inputs.K,
                "V": inputs.V,
                **{f"{name}_SHARE": N // x.shape[2] for name, x in zip("QKV", rows, strict=True)},
                "W_SHARE": N // W.shape[0],
                "F_SHARE": N // f.shape[2],
                "HAS_H0": inputs.h0 is not None,
                "PACKED": cumulative is not None,
                "C": inputs.every,
                "BLOCK_K": block_k,
                "BLOCK_V": block_v,
                "ROUNDED": rounded,
                # The interpreter multiplies bfloat16 by its bits; in float32 the numbers are those
                # of a GPU's tensor cores.
                "MULTIPLIED": state if kernels.INTERPRETED else rounded,
                "num_stages": 1,  # what is loaded ahead, the kernels load ahead themselves
                "enable_fp_fusion": True,  # given, since Triton's own default changes
            },
        )

    def forward(self, *, keep: bool = True) -> dict[str, Any]:
        """The constants and options of forward."""
        approximate = self.narrow and not kernels.INTERPRETED
        few = self.narrow and self.elements <= 1024
        return {
            **self.constants,
            "KEEP": keep,
            "APPROXIMATE": approximate,
            "num_warps": 1
            if few
            else warps(self.elements),  # in the chain no warp waits for another
        }

    def backward(self, wanted: Wanted, *, clip: float | None, has_dy: bool) -> dict[str, Any]:
        """The constants and options of backward."""
        return {
            **self.constants,
            **{f"WANTS_{name.upper()}": name in wanted for name in "qkvfW"},
            "CLIP": clip,
            "HAS_DY": has_dy,
            "num_warps": warps(self.elements),
        }

    @property
    def elements(self) -> int:
        """Elements of a state, padded."""
        elements: int = self.constants["BLOCK_K"] * self.constants["BLOCK_V"]
        return elements

    def new(self, *shape: int) -> Tensor:
        """Allocate memory in the state's dtype."""
        return self.inputs[0].new_empty(shape, dtype=self.dtype)


def warps(elements: int) -> int:
    """How many warps share a state: as few as hold it and its gradient in their registers."""
    return min(16, max(elements // 512, min(4, elements // 256)))
