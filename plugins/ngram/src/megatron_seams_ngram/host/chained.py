"""Rows on the host as one of the optimizers that Megatron's chained optimizer steps.

Upstream's optimizer reads gradients from its buffers, which lie on the device and are as large as
the parameters. The rows on the host have neither, so that they get an optimizer of their own in
upstream's chain: its gradients count in the norm, are clipped with all others, and step with them.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.optimizer.optimizer import ChainedOptimizer, MegatronOptimizer
from torch import Tensor

from megatron_seams_ngram.host.divided import counts_here, group_divided, is_divided
from megatron_seams_ngram.host.reduction import reduced
from megatron_seams_ngram.host.refused import cannot
from megatron_seams_ngram.host.state import COPIES, ROWS, resume, sharded_state
from megatron_seams_ngram.host.stepped import Stepped

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class HostRowsOptimizer(MegatronOptimizer):  # type: ignore[misc]  # upstream is untyped
    """The optimizer of all tables on the host, with the methods that upstream's chain calls.

    Upstream's functions take norms of gradients on the device and scale them there. They are given
    one number for each table, its gradient's norm: it counts as the whole gradient would, and by
    what clipping makes of it the gradient itself is scaled.

    Args:
        native: The chain that the rows are stepped with, as upstream made it.

    Attributes:
        tables: Those whose rows it steps.
    """

    is_stub_optimizer = False

    def __init__(self, native: ChainedOptimizer) -> None:
        super().__init__(torch.optim.SGD([torch.zeros(1)], lr=0.0), native.config)
        self.tables: list[Stepped] = []
        self._natives = list(native.chained_optimizers)
        self._groups: dict[int, tuple[Any, int]] = {}
        self._norms: list[Any] = []
        self._gradients: list[tuple[Tensor, Tensor]] = []

    def add(self, tables: Stepped, native: Any, group: int) -> None:
        """Step these rows too, with the numbers of a native optimizer's group."""
        norm: Any = torch.zeros(1, device=tables.multipliers.device)
        # Every tensor-parallel rank has rows of its own, and so its norm counts.
        norm.tensor_model_parallel = True
        self.tables.append(tables)
        self._groups[id(tables)] = native, group
        self._norms.append(norm)

    def get_parameters(self) -> list[Any]:
        """One number for each table, whose ``grad`` is the norm of the table's gradient."""
        return self._norms

    def _get_param_groups(self) -> list[dict[str, Any]]:
        # A schedule sets the rates of the native groups, and the rows follow those.
        return []

    param_groups = property(_get_param_groups)

    def get_grad_stats_parallel_group(self) -> "ProcessGroup":
        """The ranks over which upstream adds up norms."""
        group: ProcessGroup = self._natives[0].get_grad_stats_parallel_group()
        return group

    # Upstream asks each optimizer of a chain for these, and adds up over the ranks for each. A
    # pipeline stage without tables has one optimizer less, and so these take part in nothing: the
    # norms of the rows are counted with the native optimizer's beside them (:func:`_count_in`).

    def get_grads_for_grad_norm(self, grad_norm_group: str | None = None) -> list[Tensor]:
        """None of its own."""
        del grad_norm_group
        return []

    def get_main_grads_for_grad_norm(self) -> list[Tensor]:
        """None of its own; the name that 0.17 has."""
        return []

    def get_grad_norm(self) -> float:
        """None of its own."""
        return 0.0

    def has_grad_norm_group(self, grad_norm_group: str) -> bool:
        """It has no group of norms."""
        del grad_norm_group
        return False

    def count_zeros(self) -> int:
        """Rows without a gradient are not counted."""
        return 0

    def norms(self) -> list[Tensor]:
        """The norm of each table's gradient, once there is one."""
        return [norm.grad for norm in self._norms if norm.grad is not None]

    @torch.no_grad()
    def prepare_grads(self) -> bool:
        """Average the gradients over data-parallel ranks and take their norms; none overflows."""
        scale = 1 / float(self._natives[0].get_loss_scale())
        self._gradients = []
        for tables, norm in zip(self.tables, self._norms, strict=True):
            host = tables.host
            rows, gradient = host.take()
            rows, gradient = reduced(rows, gradient, host, tables.data_parallel_group())
            if scale != 1:
                gradient = gradient * scale
            self._gradients.append((rows, gradient))
            norm.grad = gradient.norm().reshape(1).to(norm)
            # Clipping scales this one under upstream's precision-aware optimizer.
            norm.decoupled_grad = norm.grad
        return False

    @torch.no_grad()
    def step_with_ready_grads(self) -> bool:
        """Update the rows by the gradients of :meth:`prepare_grads`, as clipped."""
        gradients, self._gradients = self._gradients, []
        for tables, norm, (rows, gradient) in zip(self.tables, self._norms, gradients, strict=True):
            host, group = tables.host, self.group_of(tables)
            before, after = float(gradient.norm()), float(norm.grad or 0)
            if self.config.clip_grad > 0 and before > 0 and after < before:
                gradient = gradient * (after / before)
            host.step(rows, gradient, group)
        return True

    def group_of(self, tables: Stepped) -> dict[str, Any]:
        """The native group that has the parameters beside the rows."""
        # By its number: loading a state puts other groups in its place.
        native, number = self._groups[id(tables)]
        group: dict[str, Any] = native.param_groups[number]
        return group

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        del set_to_none
        for tables in self.tables:
            tables.host.drop()

    def get_loss_scale(self) -> Tensor:
        """The native one."""
        scale: Tensor = self._natives[0].get_loss_scale()
        return scale

    def reload_model_params(self, state_dict: Any = None) -> None:
        """Nothing: the rows are the model's, and have no copy."""

    def step(self) -> Any:
        """Not called: the chain prepares, clips and steps all of its optimizers together."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see :class:`ChainWithHostRows`."""
        return {}

    def load_state_dict(self, state_dict: Any) -> None:
        """Nothing: see :class:`ChainWithHostRows`."""

    def sharded_state_dict(
        self, model_sharded_state_dict: Any, is_loading: bool = False, **keywords: Any
    ) -> dict[str, Any]:
        """The moments of the rows, under the keys that resident rows' have in upstream's.

        Where the native optimizer's checkpoints have a copy of each parameter in float32, resident
        rows will ask for theirs too.
        """
        del is_loading
        kind = (keywords.get("metadata") or {}).get("distrib_optim_sharding_type")
        copies = [self._copy_of(one, kind) for one in self.tables]
        return sharded_state(zip(self.tables, copies, strict=True), model_sharded_state_dict)

    def _copy_of(self, tables: Stepped, kind: str | None) -> str | None:
        """Upstream's name for its copy of these rows, if they were resident; None for no copy."""
        native, _ = self._groups[id(tables)]
        if is_divided(native):
            return COPIES[0] if kind == "fully_reshardable" else None
        halved = tables.host.dtype in (torch.bfloat16, torch.float16)
        return COPIES[1] if halved and hasattr(native, "fp32_from_float16_groups") else None

    def offload_to_cpu(self) -> None:
        """Nothing: it lies there."""

    def restore_from_cpu(self) -> None:
        """Nothing: it stays there."""


class ChainWithHostRows(ChainedOptimizer):  # type: ignore[misc]  # upstream is untyped
    """Upstream's chain, which ends with the optimizer of rows on the host.

    Its state is the native optimizers' as it would be without, and beside it the rows' moments,
    which :func:`megatron_seams_ngram.host.state.resume` reads.
    """

    chained_optimizers: list[Any]

    @contextlib.contextmanager
    def _natively(self) -> Iterator[None]:
        """Without the last."""
        every = self.chained_optimizers
        self.chained_optimizers = every[:-1]
        try:
            yield
        finally:
            self.chained_optimizers = every

    @property
    def optimizer(self) -> Any:
        """The native one, where it is the only one."""
        with self._natively():
            return super().optimizer

    def state_dict(self) -> Any:
        """The native optimizers' state."""
        with self._natively():
            return super().state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        """Load the native optimizers' state."""
        if isinstance(state_dict, dict):
            state_dict = {key: value for key, value in state_dict.items() if key != ROWS}
        with self._natively():
            super().load_state_dict(state_dict)

    def sharded_state_dict(
        self, model_sharded_state_dict: Any, is_loading: bool = False, **keywords: Any
    ) -> Any:
        """The native optimizers' state, and when it is saved the rows' beside it."""
        with self._natively():
            state = super().sharded_state_dict(model_sharded_state_dict, is_loading, **keywords)
        if is_loading:
            return state
        own = self.chained_optimizers[-1].sharded_state_dict(model_sharded_state_dict, **keywords)
        if not own:
            return state
        if len(self.chained_optimizers) > 2:  # several natives and the rows
            # In the first one's, which takes no notice: upstream counts the entries of the whole.
            return {**state, 0: {**state[0], ROWS: own}}
        return {**state, ROWS: own}

    def save_parameter_state(self, filename: str) -> None:
        """Save the native optimizers' parameter state, in upstream's older format."""
        with self._natively():
            super().save_parameter_state(filename)

    def load_parameter_state(self, filename: str, **keywords: Any) -> None:
        """Load it."""
        with self._natively():
            super().load_parameter_state(filename, **keywords)

    def _synchronize_steps(self) -> Any:
        native = [one for one in self.chained_optimizers if not isinstance(one, HostRowsOptimizer)]
        every, self.chained_optimizers = self.chained_optimizers, native
        try:
            return super()._synchronize_steps()
        finally:
            self.chained_optimizers = every


def adopt(optimizer: Any, tables: Stepped) -> None:
    """Let upstream's optimizer step rows on the host; it changes in place.

    Args:
        optimizer: As ``get_megatron_optimizer`` returns it for the model.
        tables: Tables of the model's.

    Raises:
        FeatureInvalid: An optimizer that the rows cannot be stepped with.
    """
    faults = (
        (
            # Its subclasses, upstream's layer-wise optimizer for one, step and save otherwise.
            type(optimizer) not in (ChainedOptimizer, ChainWithHostRows)
            or not optimizer.chained_optimizers,
            f"the model's optimizer is a {type(optimizer).__name__}, and no chain of optimizers",
            "train without Megatron-FSDP and without a layer-wise optimizer",
        ),
        (
            getattr(optimizer.config, "fp16", False),
            "fp16 scales the loss, and an overflow would not be seen in rows on the host",
            "train in bf16 or fp32",
        ),
        (
            getattr(optimizer.config, "decoupled_lr", None) is not None,
            "resident tables have the rate of --decoupled-lr, as embeddings do, and rows on the "
            "host that of the projection beside them",
            "leave --decoupled-lr out",
        ),
    )
    for wrong, found, advice in faults:
        if wrong:
            raise cannot(tables.seam, found, advice)
    beside = _beside(optimizer.chained_optimizers, tables)
    if beside is None:
        raise cannot(
            tables.seam,
            "the optimizer that the configuration names does not have the model's parameters",
            "set config.grad_scale_func to scale_loss of the model's own optimizer",
        )
    native, group = beside
    if not isinstance(optimizer, ChainWithHostRows):
        member = HostRowsOptimizer(optimizer)
        _count_in(native, member)
        optimizer.chained_optimizers = [*optimizer.chained_optimizers, member]
        optimizer.__class__ = ChainWithHostRows
    member = optimizer.chained_optimizers[-1]
    member.add(tables, native, group)
    tables.member = member
    # Now, and not at the first step: a rule without a sparse form is refused before it.
    tables.host.follow(native.optimizer, member.group_of(tables), seam=tables.seam)


def adopt_and_resume(optimizer: Any, tables: Stepped) -> None:
    """:func:`adopt`; under upstream's trainer, with the moments of the checkpoint it resumed."""
    adopt(optimizer, tables)
    resume(tables)


def _beside(optimizers: list[Any], tables: Stepped) -> tuple[Any, int] | None:
    """The optimizer that has the parameters beside the rows, and the number of their group."""
    own = {id(one) for one in tables.beside}
    own |= {id(getattr(one, "main_param", None)) for one in tables.beside} - {id(None)}
    for optimizer in optimizers:
        if is_divided(optimizer):
            number = group_divided(optimizer, tables.beside)
            if number is not None:
                return optimizer, number
            continue
        for number, group in enumerate(optimizer.param_groups):
            if any(id(one) in own for one in group["params"]):
                return optimizer, number
    return None


def _count_in(native: Any, member: HostRowsOptimizer) -> None:
    """Count the norms of the rows where the native optimizer's gradients are."""
    name = "get_grads_for_grad_norm"
    if not hasattr(native, name):
        name = "get_main_grads_for_grad_norm"  # 0.17
    own = getattr(native, name)

    def with_rows(grad_norm_group: str | None = None) -> list[Tensor]:
        if grad_norm_group is not None:
            gradients: list[Tensor] = own(grad_norm_group)
            return gradients
        return [*own(), *(member.norms() if counts_here(native) else ())]

    setattr(native, name, with_rows)
