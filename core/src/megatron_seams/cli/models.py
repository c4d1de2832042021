"""The model argument of a command: a recipe, a bare pattern, or an HF configuration."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from megatron_seams.errors import RecipeInvalid, Refusal
from megatron_seams.recipes.dialect import BUILT_IN, MEGATRON
from megatron_seams.recipes.recipe import Recipe, load_recipe

F = TypeVar("F", bound=Callable[..., Any])

#: The HF configuration key of a hybrid model's layers.
_HF_PATTERN = "hybrid_override_pattern"


def model_arguments(command: F) -> F:
    """The argument ``PATTERN|RECIPE|config.json``, and the options for a bare pattern."""
    for decorate in (
        click.option(
            "--depth",
            type=click.IntRange(min=1),
            metavar="N",
            help="Repeat a bare pattern to N layers.",
        ),
        click.option(
            "--dialect",
            type=click.Choice(sorted(BUILT_IN)),
            help=f"The dialect of a bare pattern (default: {MEGATRON.name}).",
        ),
        click.argument("model", metavar="PATTERN|RECIPE|config.json"),
    ):
        command = decorate(command)
    return command


def recipe_of(model: str, dialect: str | None, depth: int | None) -> Recipe:
    """The recipe of a model argument: the file's, or the shortest one for a bare pattern.

    Raises:
        Refusal: The file cannot be read, or an option does not apply to it.
    """
    path = Path(model)
    if path.suffix == ".json":
        recipe = _of_config(path, dialect, depth)
    elif path.suffix == ".toml":
        if dialect is not None or depth is not None:
            raise Refusal(
                [
                    _invalid(
                        path,
                        "--dialect and --depth go with a bare pattern; the recipe states both",
                        "change them in the recipe",
                    )
                ]
            )
        recipe = load_recipe(path)
    else:
        recipe = Recipe.of_pattern(model, dialect=dialect or MEGATRON.name, depth=depth)
    return recipe


def _of_config(path: Path, dialect: str | None, depth: int | None) -> Recipe:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Refusal([_invalid(path, str(error), "correct the file")]) from error
    pattern = config.get(_HF_PATTERN) if isinstance(config, dict) else None
    if not isinstance(pattern, str):
        fault = _invalid(
            path, f"it has no {_HF_PATTERN}", "name a hybrid model's configuration, or a recipe"
        )
        raise Refusal([fault])
    layers = config.get("num_hidden_layers", len(pattern))
    if layers != len(pattern):
        found = f"{_HF_PATTERN} has {len(pattern)} layers and num_hidden_layers is {layers!r}"
        raise Refusal([_invalid(path, found, "correct one of them")])
    return Recipe.of_pattern(pattern, dialect=dialect or MEGATRON.name, depth=depth)


def _invalid(path: Path, found: str, advice: str) -> RecipeInvalid:
    return RecipeInvalid(asked="a model that can be read", found=found, next=advice, file=str(path))
