"""The tables that rows on the host belong to, as the optimizers of the rows know them."""

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from megatron_seams_ngram.host.rows import HostRows

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Stepped(Protocol):
    """Tables on the host; :class:`.tables.HostNgramTables` documents each attribute."""

    host: HostRows
    beside: tuple[nn.Parameter, ...]
    config: Any
    seam: str
    member: object | None
    prefix: str | None
    multipliers: Tensor

    def data_parallel_group(self) -> "ProcessGroup | None":
        """The ranks whose gradients are averaged."""

    def sharded_state_dict(self, prefix: str = "", /) -> dict[str, Any]:
        """Describe the state to Megatron's checkpoints."""
