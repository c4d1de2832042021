"""The rows of all tables on the host, their gradient, and what a micro-batch needs of them."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from megatron_seams_ngram.host.fetched import Fetched, Guess, moved_to_device, moved_to_host
from megatron_seams_ngram.host.rule import RowRule
from megatron_seams_ngram.ops.dispatch import HostKernels, choose

#: Guesses of batches to come that are kept; an older one that never came makes room.
_GUESSES = 8


class HostRows:
    """Rows in host memory, in float32 whatever the model's type is.

    A gradient is a list of rows and what to add to each, never of the table's size. It collects
    over the micro-batches of a step (:meth:`add`), is taken as one (:meth:`take`), and goes into
    the rows that have one (:meth:`step`).

    Args:
        weight: [rows, width] float32 on the CPU.
        dtype: Of the rows that are moved to the device.
        backend: As in :func:`megatron_seams_ngram.ops.dispatch.choose`, for the host's part.
        every: Whether a step updates every row, and not only those that have a gradient.

    Attributes:
        weight: The rows.
        dtype: As the argument.
        every: As the argument.
        rule: What updates the rows, made when it is known what updates the model.
        distinct: Finds each row of a list once.
    """

    def __init__(
        self, weight: Tensor, *, dtype: torch.dtype, backend: str | None, every: bool = False
    ) -> None:
        self.weight = weight
        self.every = every
        self.dtype = dtype
        self.backend = None if backend == "triton" else backend
        self.rule: RowRule | None = None
        self.distinct = Distinct(len(weight))
        # Each row's latest update, to know after a guess which rows are no longer what was moved.
        self._updates = self._updated_all = 0
        self._updated = np.zeros(len(weight), dtype=np.int32)
        self._pending: list[tuple[Tensor, Tensor, torch.cuda.Event | None]] = []
        self._guesses: deque[Guess] = deque(maxlen=_GUESSES)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is under way, for a copy."""
        return {**self.__dict__, "_pending": [], "_guesses": deque(maxlen=_GUESSES)}

    @property
    def kernels(self) -> HostKernels:
        """Who hashes, looks up and writes on the host."""
        return self._kernels()

    def _kernels(self) -> HostKernels:
        return cast(HostKernels, choose(self.backend, torch.device("cpu")))

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
            rows, places = self.distinct(local)
        else:
            rows, inverse = self.distinct(local[here])
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
        """The rows fetched ahead for these very tensors, with the values of now; None if nothing.

        Args:
            batch: As :meth:`Guess.is_of` has it.
        """
        return self._guessed(lambda guess: guess.is_of(batch))

    def guessed_like(self, ids: Tensor, starts: Tensor | None) -> Fetched | None:
        """The rows fetched ahead for these ids, with the values of now; None if nothing.

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
            Rows [u] int64, none twice, and what to add to each, [u, width] float32; u may be 0. The
            micro-batches are added in their order.
        """
        parts = []
        for rows, gradient, ready in self._pending:
            if ready is not None:
                ready.synchronize()
            parts.append((rows, gradient))
        self._pending.clear()
        return summed_rows(parts, self.weight, self.distinct)

    def follow(self, optimizer: object, group: Mapping[str, Any], *, seam: str) -> RowRule:
        """The rule of the rows: that of the optimizer's group, made at the first call.

        Raises:
            FeatureInvalid: As :class:`RowRule`.
        """
        if self.rule is None:
            self.rule = RowRule(
                self.weight,
                optimizer,
                group,
                kernels=self._kernels,
                seam=seam,
                every=self.every,
            )
        return self.rule

    def step(self, rows: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        """Update the rows, by the rule and the numbers of ``group``.

        Args:
            rows: As :meth:`take` has them.
            gradient: Likewise.
            group: Of the optimizer that :meth:`follow` was called with.
        """
        if self.rule is None:
            message = "rows on the host follow no optimizer yet"
            raise RuntimeError(message)
        self.rule.step(rows, gradient, group)
        self._updates += 1
        if self.every:
            self._updated_all = self._updates
        else:
            self._updated[rows.numpy()] = self._updates

    def watched(self) -> Callable[[Tensor], Tensor | None]:
        """A finder of the rows, among some, that are updated from now on; as a guess wants it."""
        begun = self._updates

        def stale(rows: Tensor) -> Tensor | None:
            if self._updates == begun:
                return None
            if self._updated_all > begun:
                return torch.ones(len(rows), dtype=torch.bool)
            return torch.from_numpy(self._updated[rows.numpy()] > begun)

        return stale


class Distinct:
    """Finds each row of a list once, in time that depends on the list alone.

    Every row has a slot for its place in the list. The last place that is written stays, so that
    the order is always the same; a sort takes many times as long.

    Args:
        rows: Of the table.
    """

    def __init__(self, rows: int) -> None:
        # Neither filled nor cleared: only slots that were written just before are read.
        self._slots = np.empty(rows, dtype=np.int32)
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: object) -> "Distinct":
        """One of its own, since slots hold nothing between calls."""
        return Distinct(len(self._slots))

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Each row of ``rows``, [n] int64, once; and the place of every one among them, [n]."""
        listed = rows.numpy()
        order = np.arange(len(listed), dtype=np.int32)
        with self._lock:
            self._slots[listed] = order
            last = self._slots[listed]
        is_last = last == order
        place = np.cumsum(is_last) - 1
        return torch.from_numpy(listed[is_last]), torch.from_numpy(place[last])


def summed_rows(
    parts: list[tuple[Tensor, Tensor]], like: Tensor, distinct: Distinct
) -> tuple[Tensor, Tensor]:
    """Add up gradients of rows, in their order.

    Args:
        parts: Rows [u] int64, none twice within a part, and what to add to each, [u, width].
        like: The table.
        distinct: The table's.

    Returns:
        Rows, none twice, and their sums, [u, width] of ``like``'s type.
    """
    if not parts:
        return torch.empty(0, dtype=torch.int64), like.new_empty(0, like.shape[1])
    if len(parts) == 1:
        rows, gradient = parts[0]
        return rows, gradient.to(like.dtype)
    rows, places = distinct(torch.cat([rows for rows, _ in parts]))
    total = like.new_zeros(len(rows), like.shape[1])
    sizes = [len(one) for one, _ in parts]
    for at, (_, gradient) in zip(torch.split(places, sizes), parts, strict=True):
        total.index_add_(0, at, gradient.to(like.dtype))
    return rows, total
