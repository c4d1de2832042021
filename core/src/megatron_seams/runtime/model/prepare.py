"""Preparing a plan for building: its plugins are loaded, and a backend has its native layers.

Both roads to a model begin here: :func:`.build.build_model`, and upstream's trainer
(:mod:`megatron_seams.runtime.trainer.stack`).
"""

from collections.abc import Callable
from typing import Any, TypeVar

import attrs

from megatron_seams.base.wording import counted
from megatron_seams.errors import CannotRunHere, Refusal, SeamsError
from megatron_seams.planning.plan import Layer, Plan
from megatron_seams.runtime.backends.backend import ModelBackend
from megatron_seams.runtime.model.seam_layers import SeamLayers
from megatron_seams.runtime.plugins import LoadedSeams, load_plugins
from megatron_seams.upstream.surface import Native

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class PreparedPlan:
    """A plan whose plugins are loaded and whose native layers the backend can build.

    Attributes:
        plan: The plan.
        loaded: Its plugins.
        backend: Linears, norms and native layers.
    """

    plan: Plan
    loaded: LoadedSeams
    backend: ModelBackend

    def __deepcopy__(self, memo: dict[int, Any]) -> "PreparedPlan":
        """Itself: upstream copies specs, and plugins are modules."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the plan; the process that reads it loads the plugins by itself."""
        return prepare, (self.plan, self.backend)

    def seam_layers(self) -> SeamLayers:
        """The layers that seams build, and how to get their specs."""
        return SeamLayers.of_plan(self.plan, self.loaded, self.backend.provider)

    def final_norm(self) -> dict[str, Any]:
        """The stack's argument for the norm after the last layer; empty for upstream's own norm."""
        norm = self.backend.final_norm()
        return {} if norm is None else {"final_norm": norm}


def prepare(plan: Plan, backend: ModelBackend) -> PreparedPlan:
    """Load the plugins of ``plan`` and ask ``backend`` for its native layers.

    Raises:
        Refusal: With every reason: families that the machine cannot build
            (:class:`CannotRunHere`), plugins that do not load (:func:`.plugins.load_plugins`).
    """
    loaded, faults = attempt(lambda: load_plugins(plan.seams, plan.options))
    reasons = (*cannot_run(plan, backend), *faults)
    if loaded is None or reasons:
        raise Refusal(reasons)
    return PreparedPlan(plan=plan, loaded=loaded, backend=backend)


def cannot_run(plan: Plan, backend: ModelBackend) -> list[CannotRunHere]:
    """One fault for each native family of the plan that ``backend`` cannot build."""
    where: dict[str, list[Layer]] = {}
    for layer in (*plan.layers, *plan.mtp):
        if isinstance(layer.provider, Native):
            where.setdefault(layer.family, []).append(layer)
    faults = []
    for family, layers in where.items():
        reason = backend.why_not(family)
        if reason is None:
            continue
        tokens = ", ".join(dict.fromkeys(repr(layer.token) for layer in layers))
        number = counted(len(layers), "layer")
        faults.append(
            CannotRunHere(
                asked=f"native {family} (token {tokens}, {number}) on this machine",
                found=f"{reason}; the backend here is {backend.name!r}",
                next="run it where Transformer Engine and a GPU are, or leave these layers out",
                subject=family,
                positions=tuple(it.position for it in plan.layers if it.family == family),
            )
        )
    return faults


def attempt(step: Callable[[], T]) -> tuple[T | None, tuple[SeamsError, ...]]:
    """Take a step whose refusal is to be reported together with others'.

    Returns:
        The step's result and no faults; or None, and the reasons of its :class:`Refusal`.
    """
    try:
        return step(), ()
    except Refusal as refusal:
        return None, refusal.reasons
