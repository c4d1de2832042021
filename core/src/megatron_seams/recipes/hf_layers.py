"""The layers of a Hugging Face configuration, in every form that models publish them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import attrs

from megatron_seams.base.wording import counted
from megatron_seams.recipes.hf_architectures import FOREIGN, NATIVE_TOKENS, Architecture
from megatron_seams.recipes.hf_values import Values
from megatron_seams.recipes.pattern import MAX_DEPTH, MTP_SEPARATOR, STAGE_BREAK

#: A pattern in upstream's symbols, as text or as a list.
PATTERN: Final = "hybrid_override_pattern"
_MTP_PATTERN: Final = "mtp_hybrid_override_pattern"
_DEPTH: Final = "num_hidden_layers"
#: Keys that say how many MTP depths there are.
_MTP_DEPTHS: Final = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")
#: Keys of the number of experts.
EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts")
#: Keys that name every layer's block.
LISTED: Final = ("layers_block_type", "layer_types")


@attrs.frozen(kw_only=True)
class Layers:
    """The layers of a configuration.

    Attributes:
        pattern: In the megatron dialect, with tokens of its own for blocks that it does not spell.
        tokens: Those tokens -> families.
        named: Family -> the names that the configuration has for its blocks.
        count: The configuration's own layers.
        split: Whether each of them is two layers of the pattern.
    """

    pattern: str
    tokens: Mapping[str, str] = attrs.field(factory=dict)
    named: Mapping[str, str] = attrs.field(factory=dict)
    count: int
    split: bool = False


def describes_layers(config: Mapping[str, Any]) -> bool:
    """Whether a configuration has a key that only a hybrid's layers need."""
    keys = (PATTERN, *LISTED, *_PERIODIC, "attn_type_list", "linear_attn_config", "block_types")
    return any(config.get(key) is not None for key in keys)


def read_pattern(values: Values) -> Layers | None:
    """The layers of a configuration that spells them in upstream's symbols.

    None where it has faults, which are then with ``values``.
    """
    pattern = _spelled(values, PATTERN)
    if pattern is None:
        return None
    main, *written = pattern.split(MTP_SEPARATOR)
    tile = main.replace(STAGE_BREAK, "")
    _depth(values, len(tile), PATTERN)
    for key in LISTED:
        if (listed := _symbols(values, key)) not in (None, tile):
            values.fault(f"{PATTERN} and {key} say different layers: {listed}", key=key)
    part, depths = _nemotron_mtp(values)
    if not written:
        return Layers(pattern=pattern + _mtp(values, part, depths), count=len(tile))
    if part not in (None, *written) or depths not in (None, len(written)):
        values.fault(
            f"{PATTERN} has {len(written)} MTP parts {', '.join(written)}, and other keys say "
            f"{len(written) if depths is None else depths} of {part or written[0]}",
            key=PATTERN,
            advice="write the MTP part in one place",
        )
    return Layers(pattern=pattern, count=len(tile))


def read_layers(values: Values, architecture: Architecture) -> Layers | None:
    """The layers of a configuration that describes them by names, indices or periods.

    None where it has faults, which are then with ``values``.
    """
    mixers = _mixers(values, architecture)
    if mixers is None:
        return None
    unknown = sorted({name for name in mixers if name not in architecture.blocks})
    for name in unknown:
        values.fault(
            f"layers of block {name!r}, which is none of {architecture.name}'s "
            f"({', '.join(architecture.blocks)})",
            advice="correct the block's name, or write the model as a recipe",
        )
    if unknown:
        return None
    named: dict[str, str] = {}
    for name in mixers:
        named.setdefault(architecture.blocks[name], name)
    split = architecture.feed_forward != "none"
    families = [architecture.blocks[name] for name in mixers]
    if split:
        feeds = _feeds(values, architecture, len(mixers))
        pairs = zip(families, feeds, strict=True)
        families = [family for pair in pairs for family in pair]
    main = "".join(map(_token, families))
    return Layers(
        pattern=main + _mtp(values, *_mtp_part(values, architecture, families)),
        tokens={FOREIGN[name].letter: name for name in named if name in FOREIGN},
        named={family: name for family, name in named.items() if family in FOREIGN},
        count=len(mixers),
        split=split,
    )


# --- which block a layer is ---------------------------------------------------------------------

#: Names of blocks that are whole layers -> upstream's symbols.
_SPELLED: Final = {
    "mamba": "M",
    "linear_attention": "M",
    "attention": "*",
    "full_attention": "*",
    "mlp": "-",
    "moe": "E",
}

Form = Callable[[Values, Architecture, int], list[str]]


def _mixers(values: Values, architecture: Architecture) -> list[str] | None:
    """The name of each layer's block; forms that contradict each other are a fault."""
    found = {key: names for key in LISTED if (names := values.names(key)) is not None}
    if (typed := _by_types(values, architecture)) is not None:
        found["attn_type_list"] = typed
    listed = next(iter(found.values()), None)
    count = _depth(values, len(listed) if listed else None, next(iter(found), ""))
    if count is None:
        return None
    for key, form in _PERIODIC.items():
        if values.value(key) is not None:
            found[key] = form(values, architecture, count)
    tile = values.names("block_types")
    if tile:
        found["block_types"] = (tile * -(-count // len(tile)))[:count]
    if values.table("linear_attn_config"):
        found["linear_attn_config"] = _by_numbers(values, architecture, count)
    if values.faults:
        return None
    (key, names), *others = [*found.items()] or [("", [architecture.every or ""] * count)]
    if not names or not names[0]:
        values.fault(
            f"{architecture.name} describes its layers by none of "
            f"{', '.join((*LISTED, *_PERIODIC))}",
            advice="name the model's whole configuration, or write the model as a recipe",
        )
        return None
    for other, its in others:
        if [architecture.blocks.get(n) for n in its] != [architecture.blocks.get(n) for n in names]:
            values.fault(f"{key} and {other} say different layers", key=other)
    return names


def _depth(values: Values, listed: int | None, key: str) -> int | None:
    """The number of layers, by their list or by their number; both must agree."""
    before = len(values.faults)
    stated = values.whole(_DEPTH)
    if len(values.faults) > before:
        return None
    if listed is not None and stated not in (None, listed):
        values.fault(
            f"{key} has {counted(listed, 'layer')} and {_DEPTH} is {stated}",
            key=_DEPTH,
            advice="correct one",
        )
        return None
    count = stated if listed is None else listed
    if count is None or not 1 <= count <= MAX_DEPTH:
        told = "no number of layers" if count is None else counted(count, "layer")
        values.fault(f"it has {told}; from 1 to {MAX_DEPTH} are planned", key=_DEPTH)
        return None
    return count


def _at(indices: Iterable[int], architecture: Architecture, count: int) -> list[str]:
    """The architecture's two names, the first at ``indices`` from 0."""
    full, rest, chosen = architecture.full, architecture.rest, {*indices}
    return [full if index in chosen else rest for index in range(count)]


def _by_types(values: Values, architecture: Architecture) -> list[str] | None:
    """MiniMax's: 1 for attention, 0 for the other block."""
    types = values.wholes("attn_type_list")
    if types is None:
        return None
    if not {*types} <= {0, 1}:
        values.fault(f"attn_type_list has {sorted({*types} - {0, 1})}, and 0 and 1 are known")
    return _at([i for i, kind in enumerate(types) if kind], architecture, len(types))


def _indices(key: str) -> Form:
    """Layers by a list of indices from 0."""

    def form(values: Values, architecture: Architecture, count: int) -> list[str]:
        indices = values.wholes(key) or []
        if outside := sorted(index for index in indices if not 0 <= index < count):
            values.fault(f"{key} has {outside}, and the layers are 0 to {count - 1}", key=key)
        return _at(indices, architecture, count)

    return form


def _interval(key: str) -> Form:
    """Every n-th layer, the n-th first."""

    def form(values: Values, architecture: Architecture, count: int) -> list[str]:
        every = values.whole(key)
        if not every or every < 1:
            values.fault(f"{key} is {every}", key=key)
            return []
        return _at([i for i in range(count) if (i + 1) % every == 0], architecture, count)

    return form


def _period(values: Values, architecture: Architecture, count: int) -> list[str]:
    """Jamba's: attention where the index leaves a given rest."""
    period, offset = values.whole("attn_layer_period"), values.whole("attn_layer_offset") or 0
    if not period or not 0 <= offset < period:
        values.fault(
            f"attn_layer_period is {period} and attn_layer_offset {offset}", key="attn_layer_period"
        )
        return []
    first = 3 if architecture.name == "zamba" else 0  # its first three layers are its own
    full = [i for i in range(first, count) if (i - first) % period == offset]
    return _at([*full, 2] if first else full, architecture, count)


def _by_numbers(values: Values, architecture: Architecture, count: int) -> list[str]:
    """Kimi's: two lists of layer numbers from 1, which must be all layers between them."""
    lists = values.table("linear_attn_config")
    full, other = lists.get("full_attn_layers"), lists.get("kda_layers")
    if not isinstance(full, list) or not isinstance(other, list):
        values.fault("linear_attn_config has no full_attn_layers and kda_layers")
        return []
    numbers = [*full, *other]
    whole = all(type(number) is int for number in numbers)
    if not whole or sorted(numbers) != list(range(1, count + 1)):
        values.fault(
            f"full_attn_layers and kda_layers are not the layers 1 to {count}, each once",
            key="linear_attn_config",
        )
        return []
    return _at([number - 1 for number in full], architecture, count)


#: Keys from which the blocks of all layers follow -> how.
_PERIODIC: Final[Mapping[str, Form]] = {
    "full_attention_interval": _interval("full_attention_interval"),
    "attn_layer_period": _period,
    "attn_layer_indices": _indices("attn_layer_indices"),
    "hybrid_layer_ids": _indices("hybrid_layer_ids"),
    "full_attn_idxs": _indices("full_attn_idxs"),
}


# --- what follows a block in the same layer -----------------------------------------------------


def _feeds(values: Values, architecture: Architecture, count: int) -> list[str]:
    """The family of each layer's feed-forward layer."""
    experts = values.whole(*EXPERTS)
    named = values.names("mlp_layer_types")
    period, offset = values.whole("expert_layer_period"), values.whole("expert_layer_offset") or 0
    dense = {*(values.wholes("mlp_only_layers") or ())}
    step = values.whole("decoder_sparse_step")
    first = values.whole("first_k_dense_replace") or 0
    every = values.value("moe_layer_freq", "moe_layer_interval")
    # Where the key is missing it has the architecture's default, which is some experts.
    few = values.has(*EXPERTS) and (experts or 0) < architecture.fewest_experts
    if architecture.feed_forward == "dense" or few:
        return ["mlp"] * count
    if named is not None:
        if len(named) != count or not {*named} <= {"sparse", "dense"}:
            values.fault(f"mlp_layer_types is not sparse or dense for each of {count} layers")
            return ["mlp"] * count
        return ["moe" if name == "sparse" else "mlp" for name in named]
    each = every if isinstance(every, list) else [1] * count
    if len(each) != count or not (every is None or isinstance(every, list) or _counts(every)):
        values.fault(f"moe_layer_freq is {every!r:.60}: no step, and no list of {count} layers")
        return ["mlp"] * count
    every = every if _counts(every) else 1

    def sparse(index: int) -> bool:
        return (
            (not period or index % period == offset)
            and index not in dense
            and (not step or (index + 1) % step == 0)
            and index >= first
            and index % every == 0
            and bool(each[index])
        )

    return ["moe" if sparse(index) else "mlp" for index in range(count)]


def _counts(value: object) -> bool:
    """Whether a value is a whole number from 1."""
    return type(value) is int and value > 0


# --- multi-token prediction ---------------------------------------------------------------------


def _nemotron_mtp(values: Values) -> tuple[str | None, int | None]:
    """One MTP depth's layers as tokens, and how many depths there are, by Nemotron's keys."""
    part = _spelled(values, _MTP_PATTERN)
    listed = _symbols(values, "mtp_layers_block_type")
    return part or listed, values.whole(*_MTP_DEPTHS)


def _mtp_part(
    values: Values, architecture: Architecture, families: list[str]
) -> tuple[str | None, int | None]:
    """The same by any architecture's keys."""
    if architecture.feed_forward == "none":
        return _nemotron_mtp(values)
    depths = values.whole(*_MTP_DEPTHS)
    each = values.whole("mtp_transformer_layers") or 1
    if values.flag("use_mtp") is False:
        depths = 0
    if architecture.mtp is None or not 1 <= each <= MAX_DEPTH:
        return None, depths
    feed = "moe" if "moe" in families else "mlp"
    return (_token(architecture.blocks[architecture.mtp]) + _token(feed)) * each, depths


def _mtp(values: Values, part: str | None, depths: int | None) -> str:
    """The suffix of a pattern."""
    if not depths:
        return ""
    if not part or not 1 <= depths * len(part) <= MAX_DEPTH:
        values.fault(
            f"{depths} MTP depths of {part or 'no'} layers ({_MTP_PATTERN} or "
            "mtp_layers_block_type)",
            key=values.key_of(*_MTP_DEPTHS),
            advice="state the layers of an MTP depth, or set the number of depths to 0",
        )
        return ""
    return f"{MTP_SEPARATOR}{part}" * depths


def _spelled(values: Values, key: str) -> str | None:
    """A pattern that is text, a list of symbols, or a list of names of blocks."""
    found = values.value(key)
    if isinstance(found, list) and all(isinstance(part, str) for part in found):
        found = "".join(_SPELLED.get(str(part), str(part)) for part in found)
    if isinstance(found, str):
        if not found and key == PATTERN:
            values.fault(f"{key} spells no layer", key=key)
        return found or None
    if found is not None:
        values.fault(f"{key} is {found!r:.60}, neither text nor a list of symbols", key=key)
    return None


def _symbols(values: Values, key: str) -> str | None:
    """A list of names of blocks that are whole layers, in upstream's symbols."""
    names = values.names(key) or []
    for name in sorted({name for name in names if name not in _SPELLED}):
        values.fault(f"{key} names a block {name!r}; known are {', '.join(_SPELLED)}", key=key)
    return "".join(_SPELLED.get(name, "") for name in names) or None


def _token(family: str) -> str:
    """The token of a family in a recipe made from a configuration."""
    foreign = FOREIGN.get(family)
    return foreign.letter if foreign else NATIVE_TOKENS[family]
