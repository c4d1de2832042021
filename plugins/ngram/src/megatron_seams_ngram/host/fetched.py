"""The rows of one micro-batch on the device, and the guess that they will be needed."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

import attrs
import torch
from torch import Tensor


@attrs.frozen(kw_only=True, eq=False)
class Fetched:
    """Rows that were looked up on the host and moved.

    Attributes:
        rows: [u] int64 on the host, none twice: which ones.
        places: [b, s, tables] int64 on the device: the place of each position's row among them; u
            for a row that another rank has.
        values: [u, width] on the device.
        ready: What says on a GPU that both are there; None on a CPU.
    """

    rows: Tensor
    places: Tensor
    values: Tensor
    ready: "torch.cuda.Event | None"

    def arrived(self) -> "Fetched":
        """Let the running stream wait for it, without waiting here."""
        if self.ready is not None:
            stream = torch.cuda.current_stream(self.values.device)
            stream.wait_event(self.ready)
            for moved in (self.places, self.values):
                moved.record_stream(stream)
        return self


class Guess:
    """The rows of a batch that is to come, fetched while something else runs.

    A guess changes no number: one that is wrong is not used, and rows that an optimizer has changed
    in the meantime are moved again.

    Args:
        fetch: Fetches the rows; called once.
        beside: Whether in a thread of its own. On a GPU the host has time meanwhile; where the
            model runs on the same cores, a second thread is in its way.
        batch: The tensors that the batch is made of, by which it is known again; their values must
            not change. See :meth:`is_of`.
        ids: [b, s] int64 on the host, what is hashed.
        starts: The starts of documents on the host, or None.
        stale: Finds which of some rows, [u], were updated since the guess was made; None if there
            was no update at all.
    """

    def __init__(
        self,
        fetch: Callable[[], Fetched],
        *,
        beside: bool,
        batch: tuple[Tensor | None, ...],
        ids: Tensor,
        starts: Tensor | None,
        stale: Callable[[Tensor], Tensor | None],
    ) -> None:
        self._fetch, self._beside, self._stale = fetch, beside, stale
        self._batch = batch
        self._versions = _versions(batch)
        self._ids, self._starts = ids, starts
        self._found: Future[Fetched] = Future()

    def begin(self) -> None:
        """Start to fetch."""
        if not self._beside:
            self._run()
            return
        # A thread for each: a pool's would be missing in a process that was forked.
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._found.set_result(self._fetch())
        except BaseException as error:  # noqa: BLE001  # it is raised where the rows are needed
            self._found.set_exception(error)

    def is_of(self, batch: tuple[Tensor | None, ...] | None) -> bool:
        """Whether ``batch`` is the very tensors of the guess, with nothing written to them since.

        That is known without reading them, which on a GPU would wait for it.
        """
        return (
            batch is not None
            and len(batch) == len(self._batch)
            and all(one is other for one, other in zip(batch, self._batch, strict=True))
            and _versions(self._batch) == self._versions
        )

    def is_like(self, ids: Tensor, starts: Tensor | None) -> bool:
        """Whether what is hashed has the values of the guess; all on the host."""
        return _equal(ids, self._ids) and (
            starts is self._starts
            or (starts is not None and self._starts is not None and _equal(starts, self._starts))
        )

    def fetched(self, weight: Tensor) -> Fetched:
        """Wait for the rows; those that ``weight`` has changed since are moved again."""
        found = self._found.result().arrived()
        stale = self._stale(found.rows)
        if stale is not None:
            at = stale.nonzero().squeeze(1)
            device, dtype = found.values.device, found.values.dtype
            fresh = weight[found.rows[at]].to(dtype)
            found.values.index_copy_(0, at.to(device), fresh.to(device))
        return found


def moved_to_device(rows: Tensor, places: Tensor, values: Tensor, device: torch.device) -> Fetched:
    """Move what was looked up; on a GPU from pinned memory, on a stream beside the model's."""
    if device.type != "cuda":
        return Fetched(rows=rows, places=places.to(device), values=values.to(device), ready=None)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own
    with torch.cuda.stream(stream):
        moved = [one.pin_memory().to(device, non_blocking=True) for one in (places, values)]
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
        ready.record(stream)
    return Fetched(rows=rows, places=moved[0], values=moved[1], ready=ready)


def moved_to_host(gradient: Tensor) -> "tuple[Tensor, torch.cuda.Event | None]":
    """Move a gradient; on a GPU without waiting, and the event says when it is there."""
    if gradient.device.type != "cuda":
        return gradient.to("cpu"), None
    host = torch.empty(gradient.shape, dtype=gradient.dtype, pin_memory=True)
    host.copy_(gradient, non_blocking=True)
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
    ready.record(torch.cuda.current_stream(gradient.device))
    return host, ready


def _versions(batch: tuple[Tensor | None, ...]) -> tuple[int, ...]:
    return tuple(-1 if one is None else one._version for one in batch)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (
        one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    )
