"""Where the documents of a row lie, read on the host only by those who must."""

import functools

import attrs
import torch
from torch import Tensor

from megatron_seams.runtime.documents import Spans, document_spans


@attrs.frozen(kw_only=True, eq=False, slots=False)
class Documents:
    """The documents of a row of S steps, one after the other.

    To read lengths from an accelerator is to wait for all that it still has to do, so that a kernel
    takes them where they are (:meth:`on`) and only a loop on the host asks for :attr:`spans`.

    Attributes:
        steps: S.
        count: D, how many documents there are.
        cumulative: [D + 1] integers that rise from 0 to S, on any device; None where the row is one
            document.
    """

    steps: int
    count: int = 1
    cumulative: Tensor | None = None

    @classmethod
    def packed(cls, cu_seqlens: Tensor, steps: int) -> "Documents":
        """Take cumulative lengths.

        Args:
            cu_seqlens: [D + 1] integers that rise from 0 to S. On the CPU the values are checked.
                On an accelerator they are not read: a kernel takes a boundary outside the row as
                the row's end, and one below its predecessor as an empty document.
            steps: S.

        Raises:
            ValueError: ``cu_seqlens`` is not one dimension of integers, or does not describe the
                row.
        """
        if cu_seqlens.device.type == "cpu":
            document_spans(cu_seqlens, steps)
        elif cu_seqlens.dim() != 1 or cu_seqlens.is_floating_point() or len(cu_seqlens) < 2:
            message = (
                "expected cu_seqlens as one dimension of at least two integers, found "
                f"{cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
            )
            raise ValueError(message)
        return cls(steps=steps, count=len(cu_seqlens) - 1, cumulative=cu_seqlens)

    @functools.cached_property
    def spans(self) -> Spans:
        """The ``(start, stop)`` of each document, on the host: waits for an accelerator.

        Raises:
            ValueError: The cumulative lengths do not describe the row.
        """
        if self.cumulative is None:
            return ((0, self.steps),)
        return document_spans(self.cumulative, self.steps)

    def on(self, device: torch.device) -> Tensor | None:
        """Give the cumulative lengths to a kernel, without a wait.

        Args:
            device: Where the kernel runs.

        Returns:
            [D + 1] int64 on ``device``; None where the row is one document.
        """
        if self.cumulative is None:
            return None
        cumulative = self.cumulative.to(torch.int64)
        if cumulative.device.type == "cpu" and device.type == "cuda":
            # From pageable memory the copy would wait for the stream.
            cumulative = cumulative.pin_memory()
        return cumulative.to(device, non_blocking=True)

    def of_steps(self, device: torch.device) -> Tensor | None:
        """The number of each step's document, without a wait.

        Args:
            device: Where the kernel runs.

        Returns:
            [S] int32 on ``device``; None where the row is one document.
        """
        cumulative = self.on(device)
        if cumulative is None:
            return None
        steps = torch.arange(self.steps, device=device)
        found = torch.searchsorted(cumulative, steps, right=True, out_int32=True) - 1
        return found.clamp_(0, self.count - 1)
