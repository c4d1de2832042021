"""An explanation: why a token, family, seam or upstream constant resolves as it does."""

import datetime
import difflib
from collections.abc import Iterator
from typing import Any, Final

import attrs

from megatron_seams.errors import SeamsError, UnknownToken
from megatron_seams.families import Family
from megatron_seams.planning.choice import Choice, Chooser
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.requests import read_pattern
from megatron_seams.recipes.dialect import BUILT_IN
from megatron_seams.recipes.policy import Preferences
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.seams.seam import BrokenSeam, Seam
from megatron_seams.upstream.surface import NativeSymbol

SCHEMA: Final = 1


@attrs.frozen(kw_only=True)
class Spelling:
    """One dialect's reading of a token.

    Attributes:
        dialect: The dialect's name.
        token: The token.
        family: Its family; None where the dialect refuses it.
        specialised: The family that the recipe builds instead, where it does.
        refused: Why the dialect has no family for it.
    """

    dialect: str
    token: str
    family: str | None = None
    specialised: str | None = None
    refused: str | None = None


@attrs.frozen(kw_only=True)
class SeamStory:
    """One valid seam of a family.

    Attributes:
        seam: The seam.
        retired_by: The symbol, field or flag of this Megatron that retires it, in words.
        misfit: The fault that its version range excludes this Megatron.
    """

    seam: Seam
    retired_by: str | None
    misfit: SeamsError | None


@attrs.frozen(kw_only=True)
class FamilyStory:
    """One family: its provider or why it has none, its seams, and what would change that.

    Attributes:
        family: The family.
        choice: The provider, or the reason against one.
        seams: The valid seams that claim it.
        change: What would change it, in one sentence.
    """

    family: Family
    choice: Choice | SeamsError
    seams: tuple[SeamStory, ...]
    change: str


@attrs.frozen(kw_only=True)
class Explanation:
    """All that is known of a name.

    Attributes:
        asked: The name.
        megatron_core: The Megatron's version; None without one that can be read.
        spellings: What each dialect makes of it, if it is one character.
        symbol: Upstream's symbol of that character or constant, where this Megatron has one.
        families: The families that it means.
        broken: The broken seams of that name.
    """

    asked: str
    megatron_core: str | None
    spellings: tuple[Spelling, ...] = ()
    symbol: NativeSymbol | None = None
    families: tuple[FamilyStory, ...] = ()
    broken: tuple[BrokenSeam, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The explanation as JSON values, for ``explain --json``."""
        symbol = self.symbol
        return {
            "schema": SCHEMA,
            "outcome": "explanation",
            "asked": self.asked,
            "megatron_core": self.megatron_core,
            "dialects": [attrs.asdict(spelling) for spelling in self.spellings],
            "symbol": None
            if symbol is None
            else {"symbol": symbol.symbol, "constant": symbol.constant, "slot": symbol.slot},
            "families": [_story(story) for story in self.families],
            "broken": [
                {
                    "name": seam.name,
                    "distribution": seam.distribution,
                    "version": seam.version,
                    "faults": [fault.to_dict() for fault in seam.faults],
                }
                for seam in self.broken
            ],
        }


def _story(story: FamilyStory) -> dict[str, Any]:
    choice = story.choice
    provider = None if isinstance(choice, SeamsError) else choice.provider
    return {
        "family": story.family.name,
        "kind": story.family.kind,
        "summary": story.family.summary,
        "native_symbol": provider.symbol if isinstance(provider, NativeSymbol) else None,
        "slot": provider.slot if isinstance(provider, NativeSymbol) else None,
        "seam": provider.name if isinstance(provider, Seam) else None,
        "why": None if isinstance(choice, SeamsError) else choice.why,
        "refused": choice.to_dict() if isinstance(choice, SeamsError) else None,
        "change": story.change,
        "seams": [
            {
                "name": it.seam.name,
                "distribution": it.seam.distribution,
                "version": it.seam.version,
                "owner": it.seam.owner,
                "status": it.seam.manifest.seam.status,
                "upstream_fallback": it.seam.manifest.upstream.fallback,
                "accepts": it.seam.manifest.upstream.accepts,
                "retired_by": it.retired_by,
                "review_by": it.seam.manifest.seam.review_by.isoformat(),
                "tracking": [each.text for each in it.seam.manifest.upstream.references],
                "misfit": None if it.misfit is None else it.misfit.to_dict(),
            }
            for it in story.seams
        ],
    }


def explain(
    name: str,
    environment: Environment,
    recipe: Recipe | None = None,
    *,
    today: datetime.date | None = None,
) -> Explanation:
    """Explain a token, a family, an installed seam, or a constant of upstream's symbols.

    Args:
        name: The name.
        environment: The Megatron and the seams.
        recipe: The recipe under whose choices it is explained; by default there are none.
        today: The day on which overrides are judged; the system's by default.

    Raises:
        Refusal: The recipe's pattern or dialect is not valid.
        UnknownToken: It is none of these.
    """
    spellings = tuple(_spellings(name, recipe)) if len(name) == 1 else ()
    surface = environment.surface
    symbols = {it.symbol: it for it in surface.symbols}
    symbol = surface.of_constant(name) if len(name) > 1 else symbols.get(name)
    broken = tuple(seam for seam in environment.discovery.broken if seam.name == name)
    meant = dict.fromkeys(_families(name, environment, spellings, symbol))
    if not meant and not broken and symbol is None:
        raise _unknown(name, environment, spellings)
    preferences = recipe.preferences if recipe else Preferences()
    chooser = Chooser(
        environment=environment, preferences=preferences, today=today or datetime.date.today()
    )
    return Explanation(
        asked=name,
        megatron_core=str(surface.version) if surface.version else None,
        spellings=spellings,
        symbol=symbol,
        families=tuple(_told(family, environment, chooser) for family in meant),
        broken=broken,
    )


def _spellings(token: str, recipe: Recipe | None) -> Iterator[Spelling]:
    dialects = [*BUILT_IN.values()] if recipe is None else [read_pattern(recipe)[1]]
    for dialect in dialects:
        family = dialect.family_of(token, ())
        if isinstance(family, SeamsError):
            yield Spelling(dialect=dialect.name, token=token, refused=family.found)
            continue
        target = recipe.families.get(family, family) if recipe else family
        yield Spelling(
            dialect=dialect.name,
            token=token,
            family=family,
            specialised=target if target != family else None,
        )


def _families(
    name: str,
    environment: Environment,
    spellings: tuple[Spelling, ...],
    symbol: NativeSymbol | None,
) -> Iterator[Family]:
    known = environment.families
    for spelling in spellings:
        target = spelling.specialised or spelling.family
        if target is not None:
            yield known.get(target, Family(name=target, summary="No one here knows this family."))
    if name in known:
        yield known[name]
    claimed = {symbol.constant} if symbol is not None and symbol.family is None else set()
    for seam in environment.discovery.seams:
        if seam.name == name or seam.manifest.upstream.symbol_name in claimed:
            yield known[seam.family]
    if symbol is not None and symbol.family is not None and len(name) > 1:
        yield known[symbol.family]


def _told(family: Family, environment: Environment, chooser: Chooser) -> FamilyStory:
    choice = chooser.choose(family.name, of_layer=family.kind == "block")
    seams = tuple(
        SeamStory(
            seam=seam,
            retired_by=environment.superseded_by(seam),
            misfit=environment.out_of_range(seam),
        )
        for seam in environment.discovery.seams
        if seam.family == family.name
    )
    change = _change(family, environment, choice)
    return FamilyStory(family=family, choice=choice, seams=seams, change=change)


def _change(family: Family, environment: Environment, choice: Choice | SeamsError) -> str:
    if isinstance(choice, SeamsError):
        return choice.next
    if environment.surface.of_family(family.name) is not None:
        return (
            f'only [[override]] family = "{family.name}" in a recipe, with a seam, a reason and '
            "a date; or a Megatron that no longer builds it"
        )
    return "a Megatron that builds it, a second seam (refused until one is pinned), or removing it"


def _unknown(name: str, environment: Environment, spellings: tuple[Spelling, ...]) -> UnknownToken:
    discovery = environment.discovery
    seams = sorted([it.name for it in discovery.seams] + [it.name for it in discovery.broken])
    constants = [it.constant for it in environment.surface.symbols]
    near = difflib.get_close_matches(
        name.lower(), [*environment.families, *seams, *map(str.lower, constants)], n=1
    )
    spelled = {it.lower(): it for it in (*constants, *seams, *environment.families)}
    found = "; ".join(f"dialect {it.dialect}: {it.refused}" for it in spellings) or (
        f"it is no family ({', '.join(environment.families)}), no installed seam "
        f"({', '.join(seams) or 'there is none'}) and no symbol of this Megatron "
        f"({', '.join(constants) or 'it has none that can be read'})"
    )
    return UnknownToken(
        asked=f"what {name!r} is",
        found=found,
        next=f"did you mean {spelled[near[0]]}?"
        if near
        else "name one of these, or give --recipe for a token that only a recipe maps",
        subject=name,
    )
