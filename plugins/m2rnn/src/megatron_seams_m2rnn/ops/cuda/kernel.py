"""The kernels by the sizes that they are compiled for, and what a block of each takes."""

from typing import Final

import attrs
import torch

#: torch's dtypes -> the C++ that reads them.
NARROW: Final = {torch.bfloat16: "BF16", torch.float16: "F16"}
WEIGHTS: Final = {
    torch.float32: "F32",
    **{kind: f"Narrow<{name}>" for kind, name in NARROW.items()},
}

#: Rows of the state that a warp has, and steps that are brought together.
_ROWS, _GROUP = 16, 8
#: Warps beside those that step, forward and back.
_HELPERS, _HELPERS_BACK = 2, 3
#: Steps of a segment of backward; forward keeps the state before each. The longer, the less is
#: kept, and the more memory of the multiprocessor a block takes.
SEGMENTS: Final = (32, 16, 8)
#: What a multiprocessor keeps of its shared memory for itself, for each block.
_RESERVED: Final = 1024


@attrs.frozen(kw_only=True)
class Kernel:
    """A kernel, and what a block of it takes.

    Attributes:
        name: ``forward`` or ``backward``.
        options: What it is compiled for, as options of the compiler.
        threads: Threads of a block.
        shared: Bytes of shared memory of a block.
        resident: Blocks that a multiprocessor has at a time, at least.
        cooperative: Whether blocks wait for one another, so that all must run at a time.
    """

    name: str
    options: tuple[str, ...]
    threads: int
    shared: int
    resident: int
    cooperative: bool = False


@attrs.frozen(kw_only=True)
class Sizes:
    """The constants both kernels are compiled with.

    Attributes:
        K: Rows of a state, a multiple of 16.
        V: Columns of a state, 16 or 32.
        kind: The dtype of q, k, v and y.
        weights: The dtype of W.
        memory: Bytes of shared memory of a multiprocessor.
        moves_registers: Whether warps can hand registers to others.
    """

    K: int
    V: int
    kind: torch.dtype
    weights: torch.dtype
    memory: int
    moves_registers: bool

    @property
    def warps(self) -> int:
        """Warps that step."""
        return self.K // _ROWS

    def forward(self) -> Kernel:
        """The kernel of forward."""
        steps = _GROUP * ((2 * self.K + self.V) * 2 + 16)
        ahead = _GROUP * self.warps * 8 * 16
        part = _GROUP * self.warps * 8 * 4 * self.V
        shared = _laid_out(4 * steps, 2 * ahead, 3 * part)
        warps = self.warps + _HELPERS
        return self._kernel("forward", shared, (), warps=warps)

    def backward_memory(self, segment: int) -> int:
        """Bytes of shared memory of a block of backward with segments of so many steps."""
        steps = 2 * segment * ((2 * self.K + 2 * self.V) * 2 + 16)
        kept = 2 * self.K * self.V * 2
        rows = segment * self.K * self.V * 4
        sums = segment * (2 * self.K + self.warps * (self.V + 8)) * 4
        return _laid_out(steps, kept, 2 * 24, rows, sums, 64 * self.V)

    def backward(self, segment: int, *, wants: int, clips: bool, shares: bool) -> Kernel:
        """The kernel of backward.

        Args:
            segment: Steps of a segment, one of :data:`SEGMENTS`.
            wants: Whose gradients are asked for: the sum of 1 for q, 2 for k, 4 for v, 8 for f and
                16 for W.
            clips: Whether the gradient of the state is bounded.
            shares: Whether heads share a head of q or k.
        """
        options: tuple[str, ...] = (
            f"-DM2RNN_SEGMENT={segment}",
            f"-DM2RNN_WANTS={wants}",
            f"-DM2RNN_CLIPS={str(clips).lower()}",
            f"-DM2RNN_SHARES={str(shares).lower()}",
        )
        shared = self.backward_memory(segment)
        aside = self.moves_registers and self.warps == 4 and self._resident(shared) == 3
        if aside:
            # Of three blocks' registers 80 fall to each of eight warps: four of them have use for
            # more, and the others for fewer.
            options = (*options, "-DM2RNN_CHAIN_REGISTERS=112", "-DM2RNN_OTHER_REGISTERS=48")
        warps = 2 * self.warps if aside else self.warps + _HELPERS_BACK + shares
        return self._kernel("backward", shared, options, warps=warps, cooperative=shares)

    def _resident(self, shared: int) -> int:
        # Of more blocks at a time the registers would not hold what the chain wants.
        most = 3 if self.warps <= 4 else 1
        return max(1, min(most, self.memory // (shared + _RESERVED)))

    def _kernel(
        self,
        name: str,
        shared: int,
        options: tuple[str, ...],
        *,
        warps: int,
        cooperative: bool = False,
    ) -> Kernel:
        given = {
            "K": self.K,
            "V": self.V,
            "T": NARROW[self.kind],
            "W": WEIGHTS[self.weights],
            "SHARED": shared,
            "THREADS": 32 * warps,
            "RESIDENT": self._resident(shared),
        }
        return Kernel(
            name=name,
            options=(*(f"-DM2RNN_{key}={value}" for key, value in given.items()), *options),
            threads=32 * warps,
            shared=shared,
            resident=self._resident(shared),
            cooperative=cooperative,
        )


def _laid_out(*parts: int) -> int:
    """Bytes of parts that each begin at a multiple of 128."""
    return sum(-(-part // 128) * 128 for part in parts)
