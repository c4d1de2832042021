"""The n-gram tables of a module, with their rows on the host."""

import sys
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from megatron_seams_ngram.host import stepping
from megatron_seams_ngram.host.fetched import Fetched, Guess
from megatron_seams_ngram.host.refused import refuse
from megatron_seams_ngram.host.rows import HostRows
from megatron_seams_ngram.ngram_tables import NAMES, NgramTables
from megatron_seams_ngram.ops import huge_pages
from megatron_seams_ngram.ops.dispatch import choose
from megatron_seams_ngram.ops.indices import Constants
from megatron_seams_ngram.ops.lookup import look_up
from megatron_seams_ngram.shared_options import Place, Updates
from megatron_seams_ngram.tables.hash_tables import HashTables

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig
    from torch.distributed import ProcessGroup


class HostNgramTables(NgramTables):
    """:class:`NgramTables` whose rows stay on the host, so that they need no device memory.

    Token ids are hashed on the host, each row that a micro-batch needs is moved to the device once,
    and its gradient back. The rows are no parameter of the model's: nothing that moves, casts,
    wraps or optimizes parameters sees them. They are updated by a sparse optimizer of their own,
    when the model's optimizer steps (:mod:`.stepping`, :mod:`.chained`). In a state dict and in a
    checkpoint they stand where resident rows do.

    Args:
        config: The model's configuration, or None.
        seam: The seam's name, for messages.
        dp_group: The data-parallel ranks, each of which has all of the rows; None for those of
            Megatron's own groups, where there are any.
        updates: The rows that a step updates, as the option ``host-updates`` has it.
        **keywords: As of :class:`NgramTables`.

    Attributes:
        host: The rows, which ``weight`` is, [rows / ranks, width] float32 on the CPU.
        beside: Parameters of the model's that are trained with the rows: the optimizer that has
            them decides learning rate and rule.
        config: As the argument.
        seam: As the argument.
        member: The optimizer in upstream's chain that steps the rows; None where there is none.
        prefix: The prefix of the rows' key in checkpoints, once one was described.

    Raises:
        FeatureInvalid: The configuration is one that rows on the host cannot be trained with.
    """

    host: HostRows
    beside: tuple[nn.Parameter, ...]

    def __init__(
        self,
        *args: Any,
        config: "TransformerConfig | None",
        seam: str,
        dp_group: "ProcessGroup | None",
        updates: Updates,
        **keywords: Any,
    ) -> None:
        refuse(config, seam)
        self._updates = updates
        super().__init__(*args, **keywords)
        self.config, self.seam, self.dp_group = config, seam, dp_group
        self.beside = ()
        self.member: object | None = None
        self.prefix: str | None = None
        self._mirrors: dict[str, tuple[Tensor, int, Tensor]] = {}

    def _keep(self, weight: Tensor) -> None:
        rows = weight
        if weight.dtype != torch.float32:
            rows = torch.empty(weight.shape)
            huge_pages.advise(rows)
            rows.copy_(weight)
        self.host = HostRows(
            rows, dtype=weight.dtype, backend=self.backend, every=self._updates == "all"
        )
        # No parameter and no buffer, which `cuda()` and `bfloat16()` would reach.
        self.weight = self.host.weight

    def _place_of(self, device: torch.device) -> torch.device:
        del device
        return torch.device("cpu")

    def forward(
        self,
        input_ids: Tensor,
        starts: Tensor | None,
        *,
        sequence_first: bool = False,
        batch: tuple[Tensor | None, ...] | None = None,
    ) -> Tensor:
        """Look up the n-grams that end at each position, as :meth:`NgramTables.forward`.

        Where the batch was guessed (:meth:`fetch_ahead`), its rows are there already; otherwise the
        ids are copied to the host first, which on a GPU waits for it.
        """
        device = input_ids.device
        # Frozen with what is beside them: nobody would take their gradient.
        trained = any(one.requires_grad for one in self.beside)
        if training := torch.is_grad_enabled() and trained:
            stepping.settle(self)
        fetched = self.host.guessed_of(batch)
        if fetched is None:
            ids, starts = on_host(input_ids), on_host(starts)
            fetched = self.host.guessed_like(ids, starts)
            if fetched is None:
                fetched = self._fetch(ids, starts, device).arrived()
        values = fetched.values.detach()
        if training:
            self._collect(values, fetched.rows)
        kernels = choose(self._kernels_on(device), device)
        rows = look_up(values, fetched.places, first=0, kernels=kernels).flatten(start_dim=2)
        return rows.transpose(0, 1).contiguous() if sequence_first else rows

    def _collect(self, values: Tensor, rows: Tensor) -> None:
        """Let the gradient of the moved rows go to the host once a backward pass has made it."""
        values.requires_grad_()
        # By Megatron's convention for fused accumulation, so that it is in float32 for every type.
        gathered: Any = values
        gathered.main_grad = torch.zeros_like(values, dtype=torch.float32, requires_grad=False)
        gathered.grad_added_to_main_grad = False
        host = self.host

        def collect(leaf: Any) -> None:
            host.add(rows, leaf.main_grad)
            leaf.main_grad = leaf.grad = None

        values.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]  # torch's

    def fetch_ahead(
        self, ids: Tensor, starts: Tensor | None, *, batch: tuple[Tensor | None, ...]
    ) -> None:
        """Begin to fetch the rows of a batch that is to come.

        Args:
            ids: [b, s] int64 on the host, what is hashed.
            starts: [b, s] or [1, s] int64 on the host, the starts of documents, or None.
            batch: The tensors by which :meth:`forward` will know the batch again.
        """
        device = self.multipliers.device
        # Of its own: the caller may fill the same tensor with another batch.
        own = ids.clone()
        self.host.expect(
            Guess(
                lambda: self._fetch(own, starts, device),
                beside=device.type == "cuda",
                batch=batch,
                ids=own,
                starts=starts,
                stale=self.host.watched(),
            )
        )

    def indices(self, input_ids: Tensor, starts: Tensor | None) -> Tensor:
        """Hash the n-grams on the host; as :meth:`NgramTables.indices`."""
        ids, begun = on_host(input_ids).long(), on_host(starts)
        return self.host.kernels.hash_indices(ids, begun, self.constants)

    @property
    def constants(self) -> Constants:
        """The rule's numbers, on the host."""
        return Constants(**{name: self.mirror(name, getattr(self, name)) for name in NAMES})

    def mirror(self, name: str, tensor: Tensor) -> Tensor:
        """A copy of a constant on the host, made again when a checkpoint has changed it."""
        if tensor.device.type == "cpu":
            return tensor
        kept = self._mirrors.get(name)
        if kept is None or kept[0] is not tensor or kept[1] != tensor._version:
            kept = self._mirrors[name] = (tensor, tensor._version, tensor.cpu())
        return kept[2]

    def _fetch(self, ids: Tensor, starts: Tensor | None, device: torch.device) -> Fetched:
        return self.host.fetch(self.indices(ids, starts), self.first_row, device)

    def _kernels_on(self, device: torch.device) -> str | None:
        """The backend for the moved rows: the recipe's, where the device can have it."""
        return None if self.backend == "cpu" and device.type != "cpu" else self.backend

    def data_parallel_group(self) -> "ProcessGroup | None":
        """The ranks whose gradients are averaged."""
        parallel_state: Any = sys.modules.get("megatron.core.parallel_state")
        if self.dp_group is not None or parallel_state is None:
            return self.dp_group
        if not parallel_state.model_parallel_is_initialized():
            return None
        found: ProcessGroup = parallel_state.get_data_parallel_group(with_context_parallel=True)
        return found

    def sharded_state_dict(self, prefix: str = "", *args: Any, **keywords: Any) -> dict[str, Any]:
        """Describe the state; the rows as resident ones, so that each loads the other's."""
        self.prefix = prefix
        return super().sharded_state_dict(prefix, *args, **keywords)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = f"{prefix}weight"
        others = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(
            others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self.host.forget()
        loaded = state_dict.get(key)
        if loaded is None:
            missing_keys.append(key)
        elif loaded.shape != self.weight.shape:
            error_msgs.append(
                f"size mismatch for {key}: {list(loaded.shape)} loaded, {list(self.weight.shape)} "
                "in the model"
            )
        elif loaded is not self.weight:
            self.weight.copy_(loaded)


def tables_at(
    place: Place,
    tables: HashTables,
    *,
    config: "TransformerConfig | None",
    seam: str,
    dp_group: "ProcessGroup | None",
    updates: Updates,
    **keywords: Any,
) -> NgramTables:
    """Build a module's tables where its recipe wants them; arguments as the two classes have."""
    if place == "device":
        return NgramTables(tables, **keywords)
    return HostNgramTables(
        tables, config=config, seam=seam, dp_group=dp_group, updates=updates, **keywords
    )


@overload
def on_host(tensor: Tensor) -> Tensor: ...
@overload
def on_host(tensor: Tensor | None) -> Tensor | None: ...
def on_host(tensor: Tensor | None) -> Tensor | None:
    """The tensor on the host; on a GPU this waits for it."""
    return None if tensor is None else tensor.to("cpu")
