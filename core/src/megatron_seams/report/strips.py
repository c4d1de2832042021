"""Strips: a model's layers as cells, each with the text that it shows when pointed at."""

import datetime
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import attrs

from megatron_seams.errors import Refusal, SeamsError
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.plan import Layer, Plan, grouped
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import Recipe

#: State of a cell -> its meaning.
LEGEND: Final[Mapping[str, str]] = {
    "native": "built by Megatron",
    "seam": "built by a seam",
    "experiment": "built by a seam on trial",
    "refused": "refused",
    "open": "not known before the refusal is settled",
}


@attrs.frozen(kw_only=True)
class Cell:
    """One layer.

    Attributes:
        number: The 1-based layer number.
        token: Its character.
        state: A key of :data:`LEGEND`.
        head: Its family, provider and owner.
        why: The reason for that provider.
        begins: Whether it is the first layer of a pipeline stage other than the first.
        family: Its family; empty where it has no provider.
        stage: The 0-based pipeline stage that it is on.
    """

    number: int
    token: str
    state: str
    head: str
    why: str
    begins: bool = False
    family: str = ""
    stage: int = 0


@attrs.frozen(kw_only=True)
class Stage:
    """The layers of one pipeline stage, which may be none."""

    label: str
    cells: tuple[Cell, ...]


@attrs.frozen(kw_only=True)
class Row:
    """A group of equal layers, as a row of the table."""

    count: int
    layers: str
    token: str
    family: str
    provider: str
    owner: str
    why: str


@attrs.frozen(kw_only=True)
class Strip:
    """One model.

    Attributes:
        name: Its name.
        source: The file or pattern that it was read from.
        cells: The decoder's layers.
        rows: The decoder's layers in groups, and those of one MTP depth.
        beside: The features.
        reasons: The reasons why it has no plan; empty if it has one.
        seams: Name of each seam that it uses -> the number of layers that the seam builds.
        ranks: The pipeline rank of each stage.
        mtp: The layers of one MTP depth, and how many depths there are.
    """

    name: str
    source: str
    cells: tuple[Cell, ...] = ()
    rows: tuple[Row, ...] = ()
    beside: tuple[Row, ...] = ()
    reasons: tuple[SeamsError, ...] = ()
    seams: Mapping[str, int] = attrs.field(factory=dict)
    ranks: tuple[int, ...] = (0,)
    mtp: Stage | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The layers by pipeline stage."""
        return tuple(self._stages())

    def _stages(self) -> Iterator[Stage]:
        # Where each rank has one stage, both have the same number.
        several = len(set(self.ranks)) < len(self.ranks)
        on_stage: dict[int, list[Cell]] = {}
        for cell in self.cells:
            on_stage.setdefault(cell.stage, []).append(cell)
        for stage, rank in enumerate(self.ranks):
            cells = tuple(on_stage.get(stage, ()))
            where = f", rank {rank}" if several else ""
            yield Stage(label=f"stage {stage}{where}{'' if cells else ', no layers'}", cells=cells)

    @property
    def counts(self) -> dict[str, int]:
        """State -> its number of layers."""
        counted = {state: sum(cell.state == state for cell in self.cells) for state in LEGEND}
        return {state: count for state, count in counted.items() if count}


def strip_of(
    source: str, recipe: Recipe | Refusal, environment: Environment, today: datetime.date
) -> Strip:
    """The strip of a recipe, or of its refusal; a recipe that cannot be read is one already."""
    if isinstance(recipe, Refusal):
        return Strip(name=source, source="", reasons=recipe.reasons)
    try:
        plan = resolve(recipe, environment, today=today)
    except Refusal as refusal:
        return Strip(
            name=recipe.model.name,
            source=source,
            cells=tuple(_refused(refusal)),
            reasons=refusal.reasons,
        )
    return Strip(
        name=plan.name,
        source=source,
        cells=tuple(_cells(plan.layers)),
        rows=(*_rows(plan.layers), *_mtp(plan)),
        beside=tuple(_features(plan)),
        seams=_used(plan),
        ranks=tuple(map(plan.pipeline.rank_of, range(len(plan.pipeline.sizes)))),
        mtp=_depth(plan),
    )


def _used(plan: Plan) -> dict[str, int]:
    """Name of each seam that the plan uses -> the number of layers that it builds."""
    custom = Counter(provider.seam.name for provider in plan.custom_layers().values())
    return {seam.name: custom[seam.name] for seam in plan.seams}


def _refused(refusal: Refusal) -> Iterable[Cell]:
    against: dict[int, list[SeamsError]] = {}
    for reason in refusal.reasons:
        for position in reason.positions:
            against.setdefault(position, []).append(reason)
    for number, token in enumerate(refusal.tokens, start=1):
        reasons = against.get(number, [])
        yield Cell(
            number=number,
            token=token,
            state="refused" if reasons else "open",
            head="; ".join(f"{reason.code} {reason.asked}" for reason in reasons) or LEGEND["open"],
            why="; ".join(reason.found for reason in reasons),
        )


def _depth(plan: Plan) -> Stage | None:
    if not plan.mtp:
        return None
    depths = plan.pattern.mtp_depths
    label = "MTP depth" if depths == 1 else f"each of {depths} MTP depths"
    return Stage(label=label, cells=tuple(_cells(plan.mtp)))


def _cells(layers: Iterable[Layer]) -> Iterable[Cell]:
    stage = 0
    for layer in layers:
        provider = layer.provider
        yield Cell(
            number=layer.position,
            token=layer.token,
            state=provider.state,
            head=f"{layer.family}: {_provider(layer)}, {provider.owner}".removesuffix(", -"),
            why=layer.why,
            begins=layer.stage != stage,
            family=layer.family,
            stage=layer.stage,
        )
        stage = layer.stage


def _provider(layer: Layer) -> str:
    return f"{layer.provider.label} ({layer.provider.slot})"


def _rows(layers: Iterable[Layer], prefix: str = "") -> Iterable[Row]:
    for group in grouped(layers):
        yield Row(
            count=len(group),
            layers=prefix + ", ".join(str(layer.position) for layer in group),
            token=group[0].token,
            family=group[0].family,
            provider=_provider(group[0]),
            owner=group[0].provider.owner,
            why=group[0].why,
        )


def _mtp(plan: Plan) -> Iterable[Row]:
    return _rows(plan.mtp, f"in each of {plan.pattern.mtp_depths} MTP depths: ")


def _features(plan: Plan) -> Iterable[Row]:
    for feature in plan.features:
        yield Row(
            count=1,
            layers=f"at {feature.placement}",
            token="-",  # noqa: S106 - a layer's character, not a secret
            family=feature.family,
            provider=f"seam {feature.seam.name}",
            owner=feature.seam.owner,
            why=feature.why,
        )
