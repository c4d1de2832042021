"""How the steps of a row lie in chunks of equal length, none of which holds two documents."""

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from megatron_seams.runtime.documents import Spans


@attrs.frozen(kw_only=True)
class Chunks:
    """The chunks of a row of documents; slots after a document's last step are zeros.

    Attributes:
        spans: The ``(start, stop)`` of each document.
        length: L, the steps of a chunk.
    """

    spans: Spans
    length: int

    def counts(self) -> list[int]:
        """How many chunks each document has; an empty one has none."""
        return [-(-(stop - start) // self.length) for start, stop in self.spans]

    def documents(self) -> Iterator[tuple[int, range]]:
        """Each document's number and the numbers of its chunks."""
        first = 0
        for document, count in enumerate(self.counts()):
            yield document, range(first, first + count)
            first += count

    def cut(self, x: Tensor) -> Tensor:
        """Lay [B, S, ...] out as [B, chunks, L, ...]."""
        steps = self.spans[-1][1]
        slots = sum(self.counts()) * self.length
        if len(self.spans) > 1:
            padded = torch.cat([x, x.new_zeros(x.shape[0], 1, *x.shape[2:])], dim=1)
            source = torch.full((slots,), steps)
            source[self._slots()] = torch.arange(steps)
            x = padded.index_select(1, source.to(x.device))
        elif slots != steps:
            x = functional.pad(x, (*(0, 0) * (x.dim() - 2), 0, slots - steps))
        return torch.unflatten(x, 1, (-1, self.length))

    def join(self, x: Tensor) -> Tensor:
        """Lay [B, chunks, L, ...] out as [B, S, ...] again."""
        flat = x.flatten(1, 2)
        if len(self.spans) > 1:
            return flat.index_select(1, self._slots().to(x.device))
        return flat[:, : self.spans[-1][1]]

    def _slots(self) -> Tensor:
        """The slot of each step, [S] int64."""
        slots = [torch.empty(0, dtype=torch.int64)]
        for (_, chunks), (start, stop) in zip(self.documents(), self.spans, strict=True):
            slots.append(torch.arange(stop - start) + chunks.start * self.length)
        return torch.cat(slots)
