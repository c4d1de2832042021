"""The model that a command is about: a recipe, a bare pattern, or a Hugging Face configuration."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import click

from megatron_seams.cli.complete import files
from megatron_seams.cli.near import refuse_missing_model
from megatron_seams.errors import RecipeInvalid, Refusal, SeamsError
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.dialect import BUILT_IN, MEGATRON, RESERVED
from megatron_seams.recipes.recipe import Recipe, load_recipe

F = TypeVar("F", bound=Callable[..., Any])

#: The file of a model's folder that describes the model.
_CONFIG: Final = "config.json"
#: What a file of another kind is, where its name says so.
_OTHER_FILES: Final = {
    ".yaml": "a YAML file",
    ".yml": "a YAML file",
    ".py": "a Python file",
    ".sh": "a shell script",
}
_ADVICE: Final = f"name a recipe (.toml), a model's {_CONFIG} or its folder, or a pattern"
#: Characters of file names that are in no pattern, alone or in this number.
_SURE, _MANY = frozenset(".\\~"), 3


@attrs.frozen(kw_only=True)
class Asked:
    """The model that a command is about.

    Attributes:
        recipe: The model.
        notes: What its source says that the recipe cannot, one sentence each.
        blocks: Family -> what it is in a configuration that was read, for refusals.
    """

    recipe: Recipe
    notes: tuple[str, ...] = ()
    blocks: Mapping[str, str] = attrs.field(factory=dict)

    def plan(self, environment: Environment) -> Plan:
        """The recipe's plan.

        Raises:
            Refusal: With every reason; what is missing is named as the configuration names it.
        """
        try:
            return resolve(self.recipe, environment)
        except Refusal as refusal:
            if not self.blocks:
                raise
            reasons = [self._named(reason) for reason in refusal.reasons]
            raise Refusal(reasons, refusal.findings, tokens=refusal.tokens) from refusal

    def _named(self, reason: SeamsError) -> SeamsError:
        block = self.blocks.get(reason.subject)
        return attrs.evolve(reason, found=f"{block}; {reason.found}") if block else reason


def model_arguments(command: F) -> F:
    """A recipe or pattern, and how to read a bare pattern."""
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
        click.argument("model", metavar="PATTERN|RECIPE|config.json", shell_complete=files),
    ):
        command = decorate(command)
    return command


def recipe_option(command: F) -> F:
    """``--recipe``: the recipe of a receipt, as it is now."""
    return click.option(
        "--recipe",
        metavar="FILE",
        shell_complete=files,
        help="The recipe as it is now; without it, the one in the receipt stands.",
    )(command)


def asked_model(model: str, dialect: str | None, depth: int | None) -> Asked:
    """The model that the argument names: a file, a model's folder, or a bare pattern.

    A path that exists is a path; ``--dialect`` or ``--depth`` make a pattern of a text that could
    be either.

    Raises:
        Refusal: The file cannot be read, or an option has no meaning beside it, or the text is
            neither a path that exists nor a pattern.
    """
    path, kind = Path(model), Path(model).suffix.lower()
    bare = dialect is not None or depth is not None
    if kind in (".toml", ".json"):
        refuse_missing_model(path)
    if kind == ".toml":
        _refuse_options(path, bare, "the recipe states both")
        return Asked(recipe=load_recipe(path))
    if kind == ".json":
        return _configuration(path, dialect, depth)
    if os.path.exists(model) and not bare:  # noqa: PTH110  # Path.exists raises for a long text
        return _existing(path)
    if _is_no_pattern(model, dialect or MEGATRON.name):
        raise Refusal([_neither(model, dialect or MEGATRON.name)])
    recipe = Recipe.of_pattern(model, dialect=dialect or MEGATRON.name, depth=depth)
    return Asked(recipe=recipe)


def recipe_of(model: str, dialect: str | None, depth: int | None) -> Recipe:
    """The recipe of :func:`asked_model`, with no note about its source."""
    return asked_model(model, dialect, depth).recipe


def _configuration(path: Path, dialect: str | None, depth: int | None) -> Asked:
    _refuse_options(path, dialect is not None or depth is not None, "the configuration has both")
    # Only here: a pattern and a recipe do not wait for it.
    from megatron_seams.recipes.hf_config import read_hf_config

    read = read_hf_config(path)
    return Asked(recipe=read.recipe, notes=read.notes, blocks=read.blocks)


def _existing(path: Path) -> Asked:
    """A path that exists and whose name says nothing."""
    if path.is_dir() and (path / _CONFIG).exists():
        return _configuration(path / _CONFIG, None, None)
    advice = _ADVICE
    if not _is_no_pattern(str(path), MEGATRON.name):
        advice += f"; for the pattern {str(path)!r}, add --dialect {MEGATRON.name}"
    if path.is_dir():
        recipes = sorted(file.name for file in path.glob("*.toml"))
        if recipes:
            advice = f"name one of its recipes, such as {path / recipes[0]}"
        raise Refusal([_invalid(path, f"it is a folder without a {_CONFIG}", advice)])
    what = _OTHER_FILES.get(path.suffix.lower(), "a file of no known kind")
    found = f"it is {what}; a recipe ends in .toml and a model's configuration in .json"
    raise Refusal([_invalid(path, found, advice)])


def _is_no_pattern(text: str, dialect: str) -> bool:
    """Whether a text is a path that does not exist rather than a pattern with wrong tokens."""
    known = BUILT_IN[dialect]
    foreign = {*text} - {*known.tokens} - {*known.ambiguous} - RESERVED
    in_names = {char for char in foreign if char.islower() or char == "_"}
    many = _MANY - 1 if "/" in text else _MANY
    return bool(foreign & _SURE) or len(in_names) >= many or len(foreign) > len(known.tokens)


def _neither(model: str, dialect: str) -> RecipeInvalid:
    """The refusal of a text that names no file and spells no pattern, with the likely next step."""
    advice = _ADVICE
    for suffix in (".toml", ".json"):
        if os.path.exists(model + suffix):  # noqa: PTH110
            advice = f"name {model}{suffix}"
    kind = _OTHER_FILES.get(Path(model).suffix.lower())
    if kind:
        advice = f"{kind} is not read: {_ADVICE}"
    elif re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model) and advice == _ADVICE:
        advice = (
            f"if it is a repository of Hugging Face's, download its {_CONFIG} and name that file "
            "or its folder: nothing is fetched from here"
        )
    return RecipeInvalid(
        asked=f"the model {model!r}",
        found=f"there is no such file or folder, and it is no pattern of dialect {dialect!r} "
        f"({BUILT_IN[dialect].spelled()})",
        next=advice,
        subject=model,
    )


def _refuse_options(path: Path, given: bool, why: str) -> None:
    if given:
        found = f"--dialect and --depth go with a bare pattern; {why}"
        raise Refusal([_invalid(path, found, "leave them out, or change them in the file")])


def _invalid(path: Path, found: str, advice: str) -> RecipeInvalid:
    return RecipeInvalid(asked="a model that can be read", found=found, next=advice, file=str(path))
