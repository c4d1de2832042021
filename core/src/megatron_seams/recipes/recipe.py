"""Recipes: the tables and keys of a model's TOML file, validated without coercion."""

from pathlib import Path
from typing import Any

import attrs
from attrs import field, validators

from megatron_seams.base.structure import structure
from megatron_seams.base.toml import TomlError, read_toml
from megatron_seams.base.validators import between, positive, schema, sentence, some_numbers
from megatron_seams.errors import RecipeInvalid, Refusal
from megatron_seams.recipes.dialect import MEGATRON
from megatron_seams.recipes.policy import (
    Justification,
    Override,
    Policy,
    Preferences,
    one_reason_each,
)

SCHEMA = 1


def _ranks_are_of(ranks: tuple[int, ...] | None, of: str | None) -> None:
    if ranks is not None and of is None:
        message = 'ranks count the layers of one family: name it, as in of = "attention"'
        raise ValueError(message)


@attrs.frozen(kw_only=True)
class Model:
    """``[model]``: the name and the layers."""

    name: str = field(validator=sentence)
    pattern: str
    dialect: str = MEGATRON.name
    depth: int | None = field(default=None, validator=validators.optional(positive))


@attrs.frozen(kw_only=True)
class DialectTable:
    """``[dialect]``: tokens added to the named dialect."""

    tokens: dict[str, str] = field(factory=dict)


@attrs.frozen(kw_only=True)
class LayersEntry:
    """``[[layers]]``: layers of another family than their token's.

    Attributes:
        positions: 1-based global layer numbers. Either this or ``ranks``.
        ranks: Their numbers among the layers whose tokens spell the family ``of``, from 0.
        family: Their family.
        of: The family of their token. If given, an entry for layers of any other is refused, so
            that an edited pattern cannot quietly move the specialisation to other layers.
    """

    positions: tuple[int, ...] | None = field(default=None, validator=some_numbers)
    ranks: tuple[int, ...] | None = field(default=None, validator=some_numbers)
    family: str
    of: str | None = None

    def __attrs_post_init__(self) -> None:
        """Check the keys against one another."""
        if (self.positions is None) == (self.ranks is None):
            message = (
                "exactly one of positions (global layer numbers, from 1) and ranks (numbers within "
                "the family `of`, from 0) is required"
            )
            raise ValueError(message)
        _ranks_are_of(self.ranks, self.of)


@attrs.frozen(kw_only=True)
class FeatureEntry:
    """``[[features]]``: a feature family, and where it attaches.

    Attributes:
        family: The feature family.
        placement: ``embedding`` or ``residual``; the seam's own if left out.
        layers: At ``residual``, the 1-based global numbers of the layers. Either this or ``ranks``.
        ranks: Their numbers among the layers whose tokens spell the family ``of``, from 0.
        of: The family of their token. If given, layers of any other are refused.
    """

    family: str
    placement: str | None = None
    layers: tuple[int, ...] = ()
    ranks: tuple[int, ...] | None = field(default=None, validator=some_numbers)
    of: str | None = None

    def __attrs_post_init__(self) -> None:
        """Check the keys against one another."""
        if self.layers and self.ranks is not None:
            message = "layers and ranks say the same in two ways: keep one"
            raise ValueError(message)
        _ranks_are_of(self.ranks, self.of)


@attrs.frozen(kw_only=True)
class Parallelism:
    """``[parallelism]``: how the model is spread over ranks."""

    tensor_parallel: int = field(default=1, validator=positive)
    sequence_parallel: bool = False
    pipeline_parallel: int = field(default=1, validator=positive)
    expert_parallel: int = field(default=1, validator=positive)
    context_parallel: int = field(default=1, validator=positive)


@attrs.frozen(kw_only=True)
class RuntimeSettings:
    """``[runtime]``: how the model is run."""

    packed_sequences: bool = False
    inference: bool = False


@attrs.frozen(kw_only=True)
class Smoke:
    """``[smoke]``: the toy run that ``registry smoke`` makes of the recipe.

    Attributes:
        steps: Optimizer steps.
        batch: Sequences in a step.
        sequence: Tokens in a sequence.
        learning_rate: Adam's, at its peak; from 0 to 1e30, since a step must fit into float32.
        seed: The seed of the weights and of the order of the text; torch's have 64 bits.
        megatron: Native settings for the toy model, over those that are derived for it.
    """

    steps: int = field(default=150, validator=positive)
    batch: int = field(default=8, validator=positive)
    sequence: int = field(default=128, validator=positive)
    learning_rate: float = field(default=3e-3, validator=between(0.0, 1e30))
    seed: int = field(default=1234, validator=between(-(2**62), 2**62))
    megatron: dict[str, Any] = field(factory=dict)


@attrs.frozen(kw_only=True)
class Recipe:
    """A whole recipe file.

    Attributes:
        families: Family -> the family that all its layers are made instead.
        seams: Seam name -> options, which the seam's own class validates when the plan is built.
        justify: Why seams stand where native Megatron does not; required for experiments. None
            where the recipe has no entry, so that its receipt stays as it was.
        megatron: Upstream's own configuration fields, by upstream's names.
        install: Family -> the distribution to install where nothing builds it; a refusal names it.
    """

    schema: int = field(validator=schema(SCHEMA))
    model: Model
    dialect: DialectTable = field(factory=DialectTable)
    families: dict[str, str] = field(factory=dict)
    layers: tuple[LayersEntry, ...] = ()
    features: tuple[FeatureEntry, ...] = ()
    policy: Policy = field(factory=Policy)
    override: tuple[Override, ...] = ()
    justify: tuple[Justification, ...] | None = field(default=None, validator=one_reason_each)
    seams: dict[str, dict[str, Any]] = field(factory=dict)
    megatron: dict[str, Any] = field(factory=dict)
    parallelism: Parallelism = field(factory=Parallelism)
    runtime: RuntimeSettings = field(factory=RuntimeSettings)
    install: dict[str, str] = field(factory=dict)
    smoke: Smoke = field(factory=Smoke)

    @property
    def preferences(self) -> Preferences:
        """The parts of the recipe that decide between providers."""
        return Preferences(
            policy=self.policy,
            overrides=self.override,
            configured=tuple(self.seams),
            install=self.install,
        )

    @classmethod
    def of_pattern(cls, pattern: str, *, dialect: str, depth: int | None) -> "Recipe":
        """The recipe that a bare pattern on the command line stands for."""
        model = Model(
            name=pattern.strip() or "(empty)", pattern=pattern, dialect=dialect, depth=depth
        )
        return cls(schema=SCHEMA, model=model)


def load_recipe(path: Path | str) -> Recipe:
    """Read a recipe file.

    Raises:
        Refusal: The file cannot be read or is not valid; with every fault.
    """
    asked = "a recipe that can be read"
    try:
        table = read_toml(Path(path))
    except TomlError as error:
        raise Refusal(
            [
                RecipeInvalid(
                    asked=asked,
                    found=str(error),
                    next="correct the file, or its path",
                    file=str(path),
                )
            ]
        ) from error
    recipe, faults = structure(Recipe, table)
    if recipe is None:
        raise Refusal(
            RecipeInvalid(
                asked="a valid recipe",
                found=fault.message,
                next="correct the key",
                file=str(path),
                key=fault.key or None,
            )
            for fault in faults
        )
    return recipe
