"""The placement table: every layer and feature of a plan, native and custom, by number and rank."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal

import attrs

from megatron_seams.planning.plan import Custom, Layer, Plan

#: Upstream's switch for hyper-connections, by release.
_HYPER: Final = ("enable_mhc_connections", "enable_hyper_connections")
_SHARED: Final = "moe_shared_expert_intermediate_size"


@attrs.frozen(kw_only=True)
class Placed:
    """One row of the table.

    Attributes:
        what: ``layers``, or a ``feature`` of them or beside them.
        name: The family, or the native feature's name.
        at: ``decoder``, ``mtp``, ``embedding`` or ``residual``.
        provider: ``native``, or ``seam NAME``.
        owner: The team that answers for it; ``-`` where upstream does.
        layers: The 1-based global numbers of the decoder's layers, ascending.
        ranks: Family that the layers' tokens spell -> their ranks in it, from 0.
        mtp: The 1-based numbers of the layers in one MTP depth, ascending.
        stages: The 0-based pipeline stages, ascending.
        why: The reason for the provider, or the recipe's settings that ask for the feature.
    """

    what: Literal["layers", "feature"]
    name: str
    at: str
    provider: str
    owner: str
    layers: tuple[int, ...] = ()
    ranks: Mapping[str, tuple[int, ...]] = attrs.field(factory=dict)
    mtp: tuple[int, ...] = ()
    stages: tuple[int, ...] = ()
    why: str


def placement(plan: Plan) -> tuple[Placed, ...]:
    """Every layer and feature of a plan: layers, then native features, then custom ones."""
    return (*_layers(plan), *native_features(plan), *_custom_features(plan))


def native_features(plan: Plan) -> Iterator[Placed]:
    """The features of upstream's own that the pattern and the recipe's settings ask for.

    A setting that the Megatron does not have is refused before there is a plan.
    """
    settings = plan.megatron
    if plan.pattern.mtp_depths:
        depths, part = plan.pattern.mtp_depths, plan.pattern.mtp
        why = f"{depths} depth{'s' if depths > 1 else ''} of {part}, by the pattern"
        yield _native("mtp", (), plan.mtp, why, at="mtp")
    sparse = _says(settings, (key for key in settings if key.startswith("dsa_indexer_")))
    yield from _of_family("dsa_indexer", "dsa", plan, sparse or "in every native dsa layer")
    if settings.get(_SHARED):
        yield from _of_family("shared_experts", "moe", plan, _says(settings, [_SHARED]))
    for switch in _HYPER:
        if settings.get(switch) is True:
            why = _says(settings, [switch, "mhc_num_residual_streams"])
            yield _native("hyper_connections", plan.layers, plan.mtp, why)


def _of_family(name: str, family: str, plan: Plan, why: str) -> Iterator[Placed]:
    layers, mtp = (
        [it for it in part if it.family == family and not isinstance(it.provider, Custom)]
        for part in (plan.layers, plan.mtp)
    )
    if layers or mtp:
        yield _native(name, layers, mtp, why, at="decoder" if layers else "mtp")


def _native(
    name: str,
    layers: Sequence[Layer],
    mtp: Sequence[Layer],
    why: str,
    *,
    at: str = "decoder",
) -> Placed:
    return Placed(
        what="feature",
        name=name,
        at=at,
        provider="native",
        owner="-",
        layers=tuple(layer.position for layer in layers),
        ranks=_ranks(layers),
        mtp=tuple(layer.position for layer in mtp),
        stages=_stages([*layers, *mtp]),
        why=why,
    )


def _layers(plan: Plan) -> Iterator[Placed]:
    """A row for each family and provider, of the decoder and of an MTP depth."""
    for at, part in (("decoder", plan.layers), ("mtp", plan.mtp)):
        groups: dict[tuple[str, str], list[Layer]] = {}
        for layer in part:
            groups.setdefault((layer.family, layer.provider.label), []).append(layer)
        for (family, _), layers in groups.items():
            provider = layers[0].provider
            numbers = tuple(layer.position for layer in layers)
            yield Placed(
                what="layers",
                name=family,
                at=at,
                provider=f"seam {provider.seam.name}" if isinstance(provider, Custom) else "native",
                owner=provider.owner,
                layers=numbers if at == "decoder" else (),
                ranks=_ranks(layers) if at == "decoder" else {},
                mtp=numbers if at == "mtp" else (),
                stages=_stages(layers),
                why="; ".join(dict.fromkeys(layer.why for layer in layers)),
            )


def _custom_features(plan: Plan) -> Iterator[Placed]:
    for feature in plan.features:
        layers = [plan.layers[at - 1] for at in feature.layers]
        yield Placed(
            what="feature",
            name=feature.family,
            at=feature.placement,
            provider=f"seam {feature.seam.name}",
            owner=feature.seam.owner,
            layers=feature.layers,
            ranks=_ranks(layers),
            stages=feature.stages,
            why=feature.why,
        )


def _ranks(layers: Iterable[Layer]) -> dict[str, tuple[int, ...]]:
    found: dict[str, list[int]] = {}
    for layer in layers:
        found.setdefault(layer.spelled, []).append(layer.family_rank)
    return {family: tuple(ranks) for family, ranks in found.items()}


def _stages(layers: Iterable[Layer]) -> tuple[int, ...]:
    return tuple(sorted({layer.stage for layer in layers}))


def _says(settings: Mapping[str, object], keys: Iterable[str]) -> str:
    return ", ".join(f"{key} = {settings[key]}" for key in sorted(keys) if key in settings)
