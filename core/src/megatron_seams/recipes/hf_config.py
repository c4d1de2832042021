"""A model's Hugging Face configuration as a recipe."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from megatron_seams.base.files import in_words, read_file
from megatron_seams.errors import RecipeInvalid, Refusal
from megatron_seams.recipes.dialect import MEGATRON
from megatron_seams.recipes.hf_architectures import (
    FOREIGN,
    NEMOTRON_H,
    Architecture,
    architecture_of,
)
from megatron_seams.recipes.hf_layers import (
    LISTED,
    PATTERN,
    Layers,
    describes_layers,
    read_layers,
    read_pattern,
)
from megatron_seams.recipes.hf_sizes import read_sizes, uncarried
from megatron_seams.recipes.hf_values import Values
from megatron_seams.recipes.recipe import SCHEMA, DialectTable, Model, Recipe

_MAX_BYTES: Final = 16 * 1024 * 1024
#: How deep a language model's part may lie in a configuration of several models.
_NESTED: Final = 3


@attrs.frozen(kw_only=True)
class HfModel:
    """A configuration, read.

    Attributes:
        recipe: Its layers, in the megatron dialect, and its sizes.
        notes: What a reader of the plan should know, one sentence each.
        blocks: Family -> what it is in that configuration, where Megatron's dialect has no token
            for it.
    """

    recipe: Recipe
    notes: tuple[str, ...] = ()
    blocks: Mapping[str, str] = attrs.field(factory=dict)


def read_hf_config(path: Path) -> HfModel:
    """Read the ``config.json`` of a model.

    Raises:
        Refusal: It cannot be read, or does not describe a hybrid's layers, or contradicts itself;
            with every fault.
    """
    whole = _json(path)
    notes: list[str] = []
    config, place = _language_part(whole)
    if place:
        name = whole.get("model_type") or "the model"
        notes.append(f"{path.name}: only {place} is read, the language model of {name}")
    values = Values(config, str(path))
    architecture = architecture_of(config)
    values.value(PATTERN, *LISTED)
    layers = _layers(values, architecture)
    if layers is None or values.faults:
        raise Refusal(values.faults)
    if architecture is None:
        architecture = NEMOTRON_H
        notes.append(
            f"{path.name} names no architecture that is known; {PATTERN} is {architecture.name}'s "
            "key, and the rest is read as its"
        )
    families = {FAMILIES.get(token, token) for token in layers.pattern} | {*layers.tokens.values()}
    megatron = read_sizes(values, architecture, families)
    if values.faults:
        raise Refusal(values.faults)
    notes += _notes(path, architecture, layers, values)
    name = architecture.name
    if layers.split:
        name += f", {layers.count} layers of mixer and feed-forward"
    return HfModel(
        recipe=Recipe(
            schema=SCHEMA,
            model=Model(name=name, pattern=layers.pattern),
            dialect=DialectTable(tokens=dict(layers.tokens)),
            megatron=megatron,
        ),
        notes=tuple(notes),
        blocks={
            family: f"{architecture.name}'s block {block!r} is {FOREIGN[family].title}"
            for family, block in layers.named.items()
        },
    )


#: Token of the megatron dialect -> family.
FAMILIES: Final = MEGATRON.tokens


def _json(path: Path) -> Mapping[str, Any]:
    """The object that a JSON file spells; a byte-order mark is passed over."""
    try:
        text = read_file(path, _MAX_BYTES).decode("utf-8-sig")
        found = json.loads(text, object_pairs_hook=_each_key_once)
    except (OSError, ValueError, RecursionError) as error:
        raise Refusal(
            [_fault(path, in_words(error), "correct the file; it is JSON in UTF-8")]
        ) from error
    if not isinstance(found, dict):
        kind = "a list" if isinstance(found, list) else f"{found!r:.40}"
        advice = "name a model's configuration, whose top level is an object"
        raise Refusal([_fault(path, f"its top level is {kind}, not an object", advice)])
    return found


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file.

    Raises:
        ValueError: A key is there twice; which value is meant cannot be told.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"key {twice!r} is there twice")
    return found


def _language_part(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The part that describes the language model's layers, and where it is."""
    parts = [(config, "")]
    level = parts
    for _ in range(_NESTED):
        level = [
            (inner, f"{place}.{key}".lstrip("."))
            for part, place in level
            for key, inner in part.items()
            if isinstance(inner, dict)
        ]
        parts = [*parts, *level]
    described = [(part, place) for part, place in parts if describes_layers(part)]
    known = [(part, place) for part, place in described or parts if architecture_of(part)]
    part, place = next(iter([*known, *described, (config, "")]))
    # A model of several parts ties its embeddings at the top.
    return {"tie_word_embeddings": config.get("tie_word_embeddings"), **part}, place


def _layers(values: Values, architecture: Architecture | None) -> Layers | None:
    """The layers, or None with the faults in ``values``."""
    if values.value("block_configs") is not None:
        values.fault(
            "block_configs gives layers of one kind different sizes; a hybrid stack has one size "
            "for each kind",
            key="block_configs",
            advice="name the configuration of the model that it was pruned from",
        )
        return None
    if values.key_of(PATTERN):
        return read_pattern(values)
    if architecture is not None:
        return read_layers(values, architecture)
    kind = values.value("model_type") or ", ".join(values.names("architectures") or [])
    listed = next((names for key in LISTED if (names := values.names(key))), None)
    if listed:
        blocks = ", ".join(dict.fromkeys(listed))
        values.fault(
            f"architecture {kind or '(unnamed)'} is none whose layers are known; its blocks are "
            f"{blocks}",
            advice="write its layers and sizes as a recipe; the page `models` lists what is known",
        )
    elif kind:
        values.fault(
            f"architecture {kind} is none whose layers are known, and it has no {PATTERN}",
            advice="name a hybrid model's configuration, or write the model as a recipe",
        )
    else:
        values.fault(
            f"it has no {PATTERN} and no model_type",
            advice="name a hybrid model's configuration, or a recipe",
        )
    return None


def _notes(path: Path, architecture: Architecture, layers: Layers, values: Values) -> list[str]:
    notes = []
    if layers.split:
        notes.append(
            f"each of {architecture.name}'s {layers.count} layers is two of Megatron's, its mixer "
            "and its feed-forward layer"
        )
    left = uncarried(values)
    if left:
        notes.append(
            f"no setting of Megatron carries {', '.join(left)} of {path.name}: the plan leaves "
            "that out"
        )
    return notes


def _fault(path: Path, found: str, advice: str) -> RecipeInvalid:
    return RecipeInvalid(asked="a model that can be read", found=found, next=advice, file=str(path))
