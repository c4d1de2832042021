"""The rows of all tables on the host, their gradient, and what a micro-batch needs of them."""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megatron_seams_ngram.host.fetched import Fetched, Guess, moved_to_device, moved_to_host
from megatron_seams_ngram.ops.dispatch import Kernels, choose

#: Guesses of batches to come that are kept; an older one that never came makes room.
_GUESSES = 8


class HostRows:
    """Rows in host memory, in float32 whatever the model's type is.

    A gradient is a list of rows and what to add to each, never of the table's size. It collects
    over the micro-batches of a step (:meth:`add`), is taken as one (:meth:`take`), and goes into
    the rows through a sparse optimizer (:meth:`step`).

    Args:
        weight: [rows, width] float32 on the CPU.
        dtype: Of the rows that are moved to the device.
        backend: As in :func:`megatron_seams_ngram.ops.dispatch.choose`, for the host's part.

    Attributes:
        weight: The rows.
        dtype: As the argument.
        optimizer: The sparse optimizer, made at the first step.
    """

    def __init__(self, weight: Tensor, *, dtype: torch.dtype, backend: str | None) -> None:
        self.weight = weight
        self.dtype = dtype
        self.backend = None if backend == "triton" else backend
        self.optimizer: torch.optim.Optimizer | None = None
        self._pending: list[tuple[Tensor, Tensor, torch.cuda.Event | None]] = []
        self._guesses: deque[Guess] = deque(maxlen=_GUESSES)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is under way, for a copy."""
        return {**self.__dict__, "_pending": [], "_guesses": deque(maxlen=_GUESSES)}

    @property
    def kernels(self) -> Kernels:
        """Who hashes and looks up on the host."""
        return choose(self.backend, torch.device("cpu"))

    def fetch(self, indices: Tensor, first: int, device: torch.device) -> Fetched:
        """Look the rows of a micro-batch up, each once, and begin to move them.

        Args:
            indices: [b, s, tables] int64 on the host, rows of the whole.
            first: The whole's row that this rank's first is.
            device: Where to.
        """
        local = indices.flatten() - first
        here = (local >= 0) & (local < len(self.weight))
        if here.all():
            rows, places = _distinct(local)
        else:
            rows, inverse = _distinct(local[here])
            if not len(rows):
                rows = local.new_zeros(1)  # a look-up in nothing is an error
            # Behind the last row: the look-up takes it for a row of another rank.
            places = torch.full_like(local, len(rows)).masked_scatter_(here, inverse)
        values = self.kernels.gather(self.weight, rows, 0).to(self.dtype)
        return moved_to_device(rows, places.view_as(indices), values, device)

    def expect(self, guess: Guess) -> None:
        """Keep a guess until its batch comes, and begin with it."""
        self._guesses.append(guess)
        guess.begin()

    def guessed_of(self, batch: tuple[Tensor | None, ...] | None) -> Fetched | None:
        """What was fetched ahead for these very tensors, with the values of now; None if nothing.

        Args:
            batch: As :meth:`Guess.is_of` has it.
        """
        return self._guessed(lambda guess: guess.is_of(batch))

    def guessed_like(self, ids: Tensor, starts: Tensor | None) -> Fetched | None:
        """What was fetched ahead for these ids, with the values of now; None if nothing.

        Args:
            ids: As :meth:`Guess.is_like` has it.
            starts: Likewise.
        """
        return self._guessed(lambda guess: guess.is_like(ids, starts))

    def _guessed(self, is_it: Callable[[Guess], bool]) -> Fetched | None:
        found = next(filter(is_it, self._guesses), None)
        if found is None:
            return None
        self._guesses.remove(found)
        return found.fetched(self.weight)

    def forget(self) -> None:
        """Drop what was fetched ahead, since all rows have changed."""
        self._guesses.clear()

    def add(self, rows: Tensor, gradient: Tensor) -> None:
        """Add to the gradient of some rows.

        Args:
            rows: [u] int64 on the host, none twice.
            gradient: [u, width], on any device.
        """
        self._pending.append((rows, *moved_to_host(gradient)))

    @property
    def has_gradient(self) -> bool:
        """Whether a backward pass has added to the gradient since it was taken or dropped."""
        return bool(self._pending)

    def drop(self) -> None:
        """Forget the gradient."""
        self._pending.clear()

    def take(self) -> tuple[Tensor, Tensor]:
        """The gradient, which is then empty again.

        Returns:
            Rows [u] int64, ascending, and what to add to each, [u, width] float32; u may be 0. The
            micro-batches are added in their order.
        """
        parts = []
        for rows, gradient, ready in self._pending:
            if ready is not None:
                ready.synchronize()
            parts.append((rows, gradient))
        self._pending.clear()
        return summed_rows(parts, self.weight)

    @torch.no_grad()
    def step(self, rows: Tensor, gradient: Tensor) -> None:
        """Update the rows that have a gradient, through :attr:`optimizer`."""
        if self.optimizer is None:
            message = "the optimizer of the rows is made before the first step"
            raise RuntimeError(message)
        self.weight.grad = torch.sparse_coo_tensor(
            rows.unsqueeze(0),
            gradient,
            self.weight.shape,
            is_coalesced=True,
            check_invariants=False,  # they are ascending rows of the table already
        )
        self.optimizer.step()
        self.weight.grad = None
        for guess in self._guesses:
            guess.changed.append(rows)


def summed_rows(parts: list[tuple[Tensor, Tensor]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Add up gradients of rows, in their order.

    Args:
        parts: Rows [u] int64, none twice within a part, and what to add to each, [u, width].
        like: The table.

    Returns:
        Rows, ascending, and their sums, [u, width] of ``like``'s type.
    """
    if not parts:
        return torch.empty(0, dtype=torch.int64), like.new_empty(0, like.shape[1])
    if len(parts) == 1:
        rows, gradient = parts[0]
        return rows, gradient.to(like.dtype)
    rows, places = _distinct(torch.cat([rows for rows, _ in parts]))
    total = like.new_zeros(len(rows), like.shape[1])
    sizes = [len(one) for one, _ in parts]
    for at, (_, gradient) in zip(torch.split(places, sizes), parts, strict=True):
        total.index_add_(0, at, gradient.to(like.dtype))
    return rows, total


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each row once, ascending; and the place of every given one among them."""
    found: tuple[Tensor, Tensor] = torch.unique(rows, return_inverse=True)
    return found
