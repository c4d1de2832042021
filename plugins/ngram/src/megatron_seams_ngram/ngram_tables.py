"""The trainable tables of n-gram rows, spread over ranks."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from megatron_seams.runtime.collectives import rank_in, size_of
from megatron_seams.runtime.sharding import Offsets, ShardedModule
from megatron_seams_ngram.expert_ranks import ExpertRanks
from megatron_seams_ngram.ops import huge_pages
from megatron_seams_ngram.ops.dispatch import choose
from megatron_seams_ngram.ops.exchange import look_up_over_ranks
from megatron_seams_ngram.ops.indices import Constants
from megatron_seams_ngram.ops.lookup import look_up_ngrams
from megatron_seams_ngram.tables.hash_tables import HashTables
from megatron_seams_ngram.tables.splitmix64 import nth

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: The rows of all tables are filled up to a multiple of this, so that every usual number of ranks
#: divides them and a checkpoint of one loads at another.
_MULTIPLE = 128
#: Rows whose initial values one generator draws.
_BLOCK = 4_096


class NgramTables(ShardedModule):
    """Rows of trainable values, found by hashing the n-gram that ends at each position.

    All tables lie in one matrix, one below the other, and its rows are divided over the
    tensor-parallel ranks as ``VocabParallelEmbedding`` divides its own: every rank hashes every
    position and looks up the rows that it has, so that the sum over the ranks is the whole.

    Or over expert-parallel ranks, which have a batch each: every rank then asks the others for rows
    (:func:`.ops.exchange.look_up_over_ranks`), and what it looks up is whole.

    The hash constants are persistent buffers. A checkpoint therefore keeps hashing as it was
    trained, even where the recipe's seed or the (padded) vocabulary has changed since.

    Args:
        tables: The constants.
        width: Columns of a table.
        pad_id: The id that stands for missing history.
        seed: Of the initial values, 0 <= seed < 2**64.
        init_std: Their standard deviation.
        dtype: Of the rows.
        device: Where they lie.
        tp_group: The tensor-parallel group, or None for a single rank.
        backend: As in :func:`megatron_seams_ngram.ops.dispatch.choose`.
        expert: The ranks that share the rows; None for the tensor-parallel ones.

    Attributes:
        weight: [rows / ranks, width].
    """

    weight: Tensor
    multipliers: Tensor
    biases: Tensor
    hash_of: Tensor
    primes: Tensor
    offsets: Tensor
    pad_id: Tensor

    def __init__(
        self,
        tables: HashTables,
        *,
        width: int,
        pad_id: int,
        seed: int,
        init_std: float,
        dtype: torch.dtype,
        device: torch.device,
        tp_group: "ProcessGroup | None",
        backend: str | None,
        expert: ExpertRanks | None = None,
    ) -> None:
        super().__init__()
        self.tp_group = tp_group
        self.backend = backend
        self.expert = expert
        constants = Constants.of(tables, pad_id=pad_id)
        for name in NAMES:
            self.register_buffer(name, getattr(constants, name).to(device))
        group = tp_group if expert is None else expert.peers
        ranks = size_of(group)
        multiple = math.lcm(_MULTIPLE, ranks)
        rows = -(-tables.rows // multiple) * multiple // ranks
        self.first_row = rows * rank_in(group)
        weight = torch.empty(rows, width, dtype=dtype, device=self._place_of(device))
        huge_pages.advise(weight)
        _fill(weight, self.first_row, seed=seed, std=init_std)
        self._keep(weight)

    def _place_of(self, device: torch.device) -> torch.device:
        """Where the rows are filled."""
        return device

    def _keep(self, weight: Tensor) -> None:
        """Make the rows a parameter of the model's."""
        self.weight = nn.Parameter(weight)
        # Megatron's marks: for gradient norms and checkpoints; and for optimizers that treat
        # matrices (Muon) or embeddings (a learning rate of their own) otherwise.
        marks = {
            "tensor_model_parallel": True,
            "partition_dim": 0,
            "partition_stride": 1,
            "is_embedding_or_output_parameter": True,
        }
        if self.expert is not None:
            marks["allreduce"] = False  # upstream's mark for what it reduces as it does experts
        for mark, value in marks.items():
            setattr(self.weight, mark, value)

    def forward(
        self,
        input_ids: Tensor,
        starts: Tensor | None,
        *,
        sequence_first: bool = False,
        batch: tuple[Tensor | None, ...] | None = None,
    ) -> Tensor:
        """Look up the n-grams that end at each position.

        Args:
            input_ids: [b, s] int64.
            starts: [b, s] or [1, s] int64, the first position of each token's document; None where
                every row of the batch is one document.
            sequence_first: Whether to return [s, b, ...].
            batch: The tensors that the model was given, by which tables on the host know a batch
                that they have fetched ahead.

        Returns:
            [b, s, tables * width]: the rows that this rank has, zeros in place of the others; of
            all ranks where these are expert-parallel. With ``sequence_first`` [s, b, tables *
            width], contiguous.
        """
        del batch
        kernels = choose(self.backend, self.weight.device)
        if self.expert is None:
            rows = look_up_ngrams(
                self.weight,
                input_ids.long(),
                starts,
                self.constants,
                first=self.first_row,
                kernels=kernels,
                sequence_first=sequence_first,
            )
        else:
            rows = look_up_over_ranks(
                self.weight,
                self.indices(input_ids, starts),
                first=self.first_row,
                kernels=kernels,
                group=self.expert.peers,
            )
        rows = rows.flatten(start_dim=2)
        return rows.transpose(0, 1).contiguous() if sequence_first else rows

    def indices(self, input_ids: Tensor, starts: Tensor | None) -> Tensor:
        """Hash the n-grams that end at each position.

        Returns:
            [b, s, tables] int64, rows of the whole matrix.
        """
        kernels = choose(self.backend, self.weight.device)
        return kernels.hash_indices(input_ids.long(), starts, self.constants)

    @property
    def constants(self) -> Constants:
        """The rule's numbers, where the module lies."""
        return Constants(**{name: getattr(self, name) for name in NAMES})

    def divided(self) -> dict[str, int]:
        """The rows; all constants are on every rank."""
        return {"weight": 0}

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: Offsets = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Describe the state, as upstream calls it; the rows as this rank's part of the whole.

        Args:
            prefix: Of the keys.
            sharded_offsets: The dimensions that upstream puts before a tensor's own.
            metadata: Upstream's.

        Returns:
            As :meth:`ShardedModule.sharded_state_dict`.
        """
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        if self.expert is not None:
            from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

            state |= make_sharded_tensors_for_checkpoint(
                {"weight": self.weight},
                prefix,
                {"weight": 0},
                sharded_offsets,
                tp_group=self.expert.peers,
                dp_cp_group=self.expert.replicas,
            )
        return state

    def extra_repr(self) -> str:
        """Show the sizes where torch prints the module."""
        rows, width = self.weight.shape
        return f"tables={len(self.primes)}, rows={rows}, first_row={self.first_row}, width={width}"


#: The constants, as buffers.
NAMES = ("multipliers", "biases", "hash_of", "primes", "offsets", "pad_id")


@torch.no_grad()
def _fill(weight: Tensor, first_row: int, *, seed: int, std: float) -> None:
    """Draw initial values that depend on the row alone, not on the rank that has it.

    Each block of rows has a generator of its own, on the CPU in float32. So the values are the same
    at any number of ranks and on any device, no rank draws all of them, and torch's own generator,
    which the native modules draw from, is not touched.
    """
    end = first_row + len(weight)
    in_place = weight.dtype == torch.float32 and weight.device.type == "cpu"
    for block in range(first_row // _BLOCK, -(-end // _BLOCK)):
        generator = torch.Generator(device="cpu").manual_seed(nth(seed, block))
        start = block * _BLOCK
        low, high = max(start, first_row), min(start + _BLOCK, end)
        place = weight[low - first_row : high - first_row]
        if in_place and len(place) == _BLOCK:
            place.normal_(std=std, generator=generator)
            continue
        rows = torch.empty(_BLOCK, weight.shape[1], dtype=torch.float32, device="cpu")
        rows.normal_(std=std, generator=generator)
        place.copy_(rows[low - start : high - start])
