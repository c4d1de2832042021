"""Resolution: from a recipe and an environment to a plan, or to every reason against one."""

import datetime
from collections.abc import Iterable

from megatron_seams.choice import Choice, Chooser, unused_settings
from megatron_seams.environment import Environment
from megatron_seams.errors import (
    FeatureInvalid,
    Refusal,
    SeamInMtp,
    SeamsError,
    UnknownNativeKey,
    Unsupported,
    UpstreamForbids,
)
from megatron_seams.families import BUILT_IN
from megatron_seams.lowering import Carriers, choose_carriers
from megatron_seams.pattern import MTP_SEPARATOR, STAGE_BREAK, Pattern
from megatron_seams.plan import Custom, Layer, Native, Plan, PlannedFeature, Provider
from megatron_seams.recipe import Recipe
from megatron_seams.seam import Seam
from megatron_seams.specialise import Families, families_of, read_pattern
from megatron_seams.surface import NativeSurface, NativeSymbol

#: `[megatron]` keys that another table of the recipe decides.
_ELSEWHERE = {
    "num_layers": "model.depth",
    "hybrid_layer_pattern": "model.pattern",
    "hybrid_override_pattern": "model.pattern",
    "mtp_num_layers": "the MTP suffix of model.pattern",
    "tensor_model_parallel_size": "parallelism.tensor-parallel",
    "pipeline_model_parallel_size": "parallelism.pipeline-parallel",
    "virtual_pipeline_model_parallel_size": "the '|' of model.pattern",
    "expert_model_parallel_size": "parallelism.expert-parallel",
    "context_parallel_size": "parallelism.context-parallel",
    "sequence_parallel": "parallelism.sequence-parallel",
}


def resolve(
    recipe: Recipe, environment: Environment, *, today: datetime.date | None = None
) -> Plan:
    """Resolve every layer and feature of a recipe.

    Args:
        recipe: The model.
        environment: The Megatron and the seams to build it from.
        today: The day on which overrides are judged; the system's by default.

    Returns:
        The plan.

    Raises:
        Refusal: With every reason at once.
    """
    try:
        pattern, dialect = read_pattern(recipe)
    except Refusal as refusal:
        raise Refusal((*environment.faults, *refusal.reasons), environment.findings) from refusal
    families = families_of(recipe, pattern, dialect)
    chooser = Chooser(environment, recipe, today or datetime.date.today())
    reasons: list[SeamsError] = [*environment.faults, *families.faults]
    choices = _choose(chooser, pattern, families, reasons)
    mtp = _choose_mtp(chooser, pattern, families, reasons)
    features = _features(recipe, pattern, environment, chooser, reasons)
    carriers = _carry(environment, choices, mtp, reasons)
    chosen = {seam.name: seam for seam in (*_seams(choices.values()), *(f.seam for f in features))}
    reasons += _supported(recipe, pattern, chosen.values())
    reasons += _stages(recipe, pattern)
    reasons += _separators(pattern, environment.surface)
    reasons += _native_keys(recipe, environment, carriers)
    present = frozenset({*choices, *(feature.family for feature in recipe.features)})
    retired = frozenset(
        seam.name
        for family, choice in choices.items()
        if isinstance(choice.provider, NativeSymbol)
        for seam in chooser.installed(family)
    )
    if not reasons:
        # Only a plan that stands can say what it does not read.
        unused, idle = unused_settings(recipe, present, frozenset(chosen), retired)
        reasons += unused
    if reasons:
        ordered = sorted(reasons, key=_first_layer)
        raise Refusal(ordered, environment.findings, tokens=pattern.tokens)
    return Plan(
        name=recipe.model.name,
        pattern=pattern,
        surface=environment.surface,
        layers=tuple(_layers(pattern, families, choices, carriers)),
        mtp=tuple(_mtp_layers(pattern, families, mtp)),
        features=tuple(features),
        options={name: recipe.seams[name] for name in sorted(recipe.seams) if name in chosen},
        megatron=recipe.megatron,
        parallelism=recipe.parallelism,
        runtime=recipe.runtime,
        findings=(*environment.findings, *idle),
    )


def _first_layer(reason: SeamsError) -> int:
    # Faults of the environment and the recipe's form come first; sorted() keeps their order.
    return min(reason.positions, default=0)


def _choose(
    chooser: Chooser, pattern: Pattern, families: Families, reasons: list[SeamsError]
) -> dict[str, Choice]:
    """Family -> choice, for the decoder's layers; one reason for each family without one."""
    where: dict[str, list[int]] = {}
    for position, family in enumerate(families.layers, start=1):
        if family is not None:
            where.setdefault(family, []).append(position)
    choices: dict[str, Choice] = {}
    for family, positions in where.items():
        choice = chooser.choose(family)
        if isinstance(choice, SeamsError):
            reasons.append(_at(choice, pattern, families, positions))
        else:
            choices[family] = choice
    return choices


def _at(
    fault: SeamsError, pattern: Pattern, families: Families, positions: list[int]
) -> SeamsError:
    """The fault with the layers that it stops, and what their tokens say by themselves."""
    tokens = ", ".join(dict.fromkeys(repr(pattern.tokens[at - 1]) for at in positions))
    count = f"{len(positions)} layer{'s' if len(positions) > 1 else ''}"
    found = fault.found
    other = {families.spelled[at - 1] for at in positions} - {families.layers[positions[0] - 1]}
    if other:
        spelled = " and ".join(sorted(_described(family) for family in other if family))
        because = families.because[positions[0] - 1]
        found += f"; {because}, and {spelled} is not taken in its place"
    return type(fault)(
        asked=f"{fault.asked} (token {tokens}, {count})",
        found=found,
        next=fault.next,
        subject=fault.subject,
        file=fault.file,
        key=fault.key,
        positions=tuple(positions),
    )


def _described(family: str) -> str:
    known = BUILT_IN.get(family)
    return f"{family} ({known.summary.rstrip('.')})" if known else family


def _choose_mtp(
    chooser: Chooser, pattern: Pattern, families: Families, reasons: list[SeamsError]
) -> dict[str, NativeSymbol]:
    """Family -> native symbol, for the MTP suffix, where nothing else is supported."""
    found: dict[str, NativeSymbol] = {}
    for family in dict.fromkeys(family for family in families.mtp if family):
        choice = chooser.choose(family)
        if isinstance(choice, SeamsError):
            if family not in families.layers:  # else it has been said of the decoder's layers
                reasons.append(choice)
        elif isinstance(choice.provider, Seam):
            tokens = [t for t, f in zip(pattern.mtp, families.mtp, strict=True) if f == family]
            reasons.append(
                SeamInMtp(
                    asked=f"{choice.provider.claim} for token {tokens[0]!r} of MTP part "
                    f"{pattern.mtp!r}",
                    found="an MTP depth builds its layers from native parts only, with numbers of "
                    "its own",
                    next="spell the MTP part with native families",
                    subject=family,
                )
            )
        else:
            found[family] = choice.provider
    return found


def _features(
    recipe: Recipe,
    pattern: Pattern,
    environment: Environment,
    chooser: Chooser,
    reasons: list[SeamsError],
) -> list[PlannedFeature]:
    planned: dict[str, PlannedFeature] = {}
    for entry in recipe.features:
        family = environment.families.get(entry.family)
        problem = advice = ""
        if family is not None and family.kind != "feature":
            problem, advice = f"{entry.family} is a block", "spell it in the pattern"
        elif entry.family in planned:
            problem, advice = "the recipe has it twice", "keep one entry"
        elif pattern.mtp_depths:
            problem = (
                "the pattern has an MTP suffix: MTP calls the same embedding with token ids that "
                "are rolled by one, which no feature takes yet"
            )
            advice = "leave out the suffix or the feature"
        if problem:
            reasons.append(_feature_fault(entry.family, problem, advice))
            continue
        choice = chooser.choose(entry.family, of_layer=False)
        if isinstance(choice, SeamsError):
            reasons.append(choice)
            continue
        seam = choice.provider
        if not isinstance(seam, Seam) or seam.manifest.feature is None:
            continue
        placement = seam.manifest.feature.placement
        if entry.placement not in (None, placement):
            problem = f"{seam.claim} attaches at {placement!r}"
            advice = f'write placement = "{placement}", or leave it out'
            reasons.append(_feature_fault(f"{entry.family} at {entry.placement}", problem, advice))
            continue
        planned[entry.family] = PlannedFeature(
            family=entry.family, placement=placement, seam=seam, why=choice.why
        )
    return list(planned.values())


def _feature_fault(asked: str, found: str, advice: str) -> FeatureInvalid:
    return FeatureInvalid(
        asked=f"feature {asked}", found=found, next=advice, subject=asked, key="features"
    )


def _seams(choices: Iterable[Choice]) -> list[Seam]:
    return [choice.provider for choice in choices if isinstance(choice.provider, Seam)]


def _carry(
    environment: Environment,
    choices: dict[str, Choice],
    mtp: dict[str, NativeSymbol],
    reasons: list[SeamsError],
) -> Carriers:
    native = [c.provider for c in choices.values() if isinstance(c.provider, NativeSymbol)]
    seams = _seams(choices.values())
    if environment.surface.version is None:
        return Carriers()  # nothing to ride on, which has been said already
    carriers = choose_carriers(
        environment.surface, [*native, *mtp.values()], seams, environment.families
    )
    reasons.extend(carriers.faults)
    return carriers


def _supported(recipe: Recipe, pattern: Pattern, seams: Iterable[Seam]) -> list[SeamsError]:
    """Hold the recipe's settings against what each chosen seam says it supports."""
    spread = recipe.parallelism
    wanted = {
        "tensor-parallel": (spread.tensor_parallel > 1, spread.tensor_parallel),
        "sequence-parallel": (spread.sequence_parallel, True),
        "pipeline-parallel": (
            spread.pipeline_parallel > 1 or len(pattern.stages) > 1,
            max(spread.pipeline_parallel, len(pattern.stages)),
        ),
        "expert-parallel": (spread.expert_parallel > 1, spread.expert_parallel),
        "context-parallel": (spread.context_parallel > 1, spread.context_parallel),
        "packed-sequences": (recipe.runtime.packed_sequences, True),
        "inference": (recipe.runtime.inference, True),
    }
    return [
        Unsupported(
            asked=f"{capability} = {value} with {seam.claim}",
            found=f"its manifest does not say [supports] {capability} = true",
            next=f"change the setting, or ask {seam.owner}",
            subject=seam.name,
            key=capability,
        )
        for seam in sorted(seams, key=lambda seam: seam.name)
        for capability, (asked, value) in wanted.items()
        if asked and not seam.manifest.supports[capability]
    ]


def _stages(recipe: Recipe, pattern: Pattern) -> list[SeamsError]:
    """Upstream's own rule: segments, or layers where there are none, divide evenly over stages."""
    size = recipe.parallelism.pipeline_parallel
    count, unit = len(pattern.stages), "stages in the pattern"
    if count == 1:
        count, unit = pattern.depth, "layers"
    if count % size == 0:
        return []
    return [
        UpstreamForbids(
            asked=f"pipeline-parallel = {size}",
            found=f"{count} {unit} do not divide evenly",
            next="change pipeline-parallel, or write the stages into the pattern with '|'",
            key="parallelism.pipeline-parallel",
        )
    ]


def _separators(pattern: Pattern, surface: NativeSurface) -> list[SeamsError]:
    """Stages and MTP depths are spelled with characters that an older Megatron does not have."""
    wanted = {
        STAGE_BREAK: (len(pattern.stages) > 1, "stages"),
        MTP_SEPARATOR: (pattern.mtp_depths > 0, "MTP depths"),
    }
    if surface.version is None:  # nothing is native, which has been said already
        return []
    return [
        UpstreamForbids(
            asked=f"{what} in the pattern, by {character!r}",
            found=f"the patterns of megatron-core {surface.version} have "
            f"{' and '.join(surface.separators) or 'no separators'}",
            next="write the pattern without them, or take a Megatron that has them",
            key="model.pattern",
        )
        for character, (asked, what) in wanted.items()
        if asked and character not in surface.separators
    ]


def _native_keys(recipe: Recipe, environment: Environment, carriers: Carriers) -> list[SeamsError]:
    """Every key of ``[megatron]`` is one that this Megatron has and that no other table decides."""
    faults: list[SeamsError] = []
    keys = [f"megatron.{key}" for key in recipe.megatron]
    keys += [f"smoke.megatron.{key}" for key in recipe.smoke.megatron]
    known = environment.settings() if keys and environment.surface.version else None
    for path in keys:
        key = path.rpartition(".")[2]
        if key in _ELSEWHERE:
            found, advice = f"{_ELSEWHERE[key]} decides it", "set it there"
        elif known is not None and not known.knows(key):
            found = f"megatron-core {environment.surface.version} has no such setting"
            advice = "correct the key; it is a field of TransformerConfig or a model argument"
        else:
            continue
        faults.append(
            UnknownNativeKey(asked=f"[{path}]", found=found, next=advice, subject=key, key=path)
        )
    fused = recipe.megatron.get("mla_down_proj_fusion")
    if fused and any(symbol.slot == "mla_layer" for symbol in carriers.slots.values()):
        faults.append(
            UpstreamForbids(
                asked="[megatron.mla_down_proj_fusion] with a seam in slot mla_layer",
                found="upstream's fusion edits the submodules of that slot's spec, which a seam "
                "does not have",
                next="turn the fusion off",
                key="megatron.mla_down_proj_fusion",
            )
        )
    return faults


def _provider(choice: Choice, carriers: Carriers) -> Provider:
    if isinstance(choice.provider, NativeSymbol):
        return Native(symbol=choice.provider.symbol, slot=choice.provider.slot)
    carrier = carriers.slots[choice.provider.name]
    return Custom(seam=choice.provider, symbol=carrier.symbol, slot=carrier.slot)


def _layers(
    pattern: Pattern, families: Families, choices: dict[str, Choice], carriers: Carriers
) -> Iterable[Layer]:
    providers = {family: _provider(choice, carriers) for family, choice in choices.items()}
    rows = zip(pattern.tokens, families.layers, pattern.stage_numbers(), strict=True)
    for index, (token, family, stage) in enumerate(rows):
        if family is None:  # such a pattern was refused
            continue
        because = families.because.get(index)
        why = choices[family].why
        yield Layer(
            position=index + 1,
            token=token,
            family=family,
            stage=stage,
            provider=providers[family],
            why=f"{because}; {why}" if because else why,
        )


def _mtp_layers(
    pattern: Pattern, families: Families, mtp: dict[str, NativeSymbol]
) -> Iterable[Layer]:
    last = len(pattern.stages) - 1
    for number, (token, family) in enumerate(zip(pattern.mtp, families.mtp, strict=True), start=1):
        if family is not None:
            symbol = mtp[family]
            yield Layer(
                position=number,
                token=token,
                family=family,
                stage=last,
                provider=Native(symbol=symbol.symbol, slot=symbol.slot),
                why="an MTP depth is built from native parts",
            )
