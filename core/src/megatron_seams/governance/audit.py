"""The audit: every family with its provider, and every seam with its owner."""

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from megatron_seams.errors import ExperimentNotNamed, NoProvider, OnlyBroken, SeamsError
from megatron_seams.families import Family
from megatron_seams.planning.choice import Chooser
from megatron_seams.planning.environment import Environment
from megatron_seams.seams.removal import how_to_remove
from megatron_seams.seams.seam import Seam
from megatron_seams.upstream.surface import NativeSymbol

if TYPE_CHECKING:
    from megatron_seams.governance.justified import Justified

SCHEMA = 1
#: The owner of every native block.
UPSTREAM = "NVIDIA/Megatron-LM"
#: Reason without a provider -> the family's state; for every other reason it is ``refused``.
_STATES: dict[type[SeamsError], str] = {OnlyBroken: "broken", ExperimentNotNamed: "experiment"}


@attrs.frozen(kw_only=True)
class SeamRow:
    """One installed, valid seam in the audit."""

    seam: Seam
    state: str


@attrs.frozen(kw_only=True)
class FamilyRow:
    """One family in the audit.

    Attributes:
        family: The family.
        state: ``native``, ``seam``, ``experiment``, ``superseded``, ``broken`` or ``refused``.
        symbol: The native symbol, if Megatron builds it.
        seams: The seams that claim it.
        note: One sentence: the family's summary, the reason for its state, or what to do.
    """

    family: Family
    state: str
    symbol: NativeSymbol | None
    seams: tuple[SeamRow, ...]
    note: str

    @property
    def owner(self) -> str:
        """The owner of the provider that a layer of the family would get."""
        if self.state in ("native", "superseded"):
            return UPSTREAM
        return ", ".join(dict.fromkeys(row.seam.owner for row in self.seams)) or "nobody"


@attrs.frozen(kw_only=True)
class Audit:
    """All rows, with the findings of the environment.

    Attributes:
        environment: The Megatron and the seams.
        families: A row for each family.
        justified: Seam name -> the reasons for it in the workspace's recipes.
    """

    environment: Environment
    families: tuple[FamilyRow, ...]
    justified: "Mapping[str, tuple[Justified, ...]]" = attrs.field(factory=dict)

    @property
    def findings(self) -> tuple[SeamsError, ...]:
        """The findings of the environment, the gravest first."""
        return self.environment.findings

    def to_dict(self) -> dict[str, Any]:
        """The audit as JSON values, for ``list --json``."""
        surface = self.environment.surface
        version = str(surface.version) if surface.version else None
        return {
            "schema": SCHEMA,
            "megatron_core": {
                "version": version,
                "origin": surface.origin or None,
                "surface_digest": surface.digest or None,
            },
            "families": [_family(row, self.justified) for row in self.families],
            "broken": [
                {
                    "name": seam.name,
                    "distribution": seam.distribution,
                    "version": seam.version,
                    "family": seam.manifest.seam.family if seam.manifest else None,
                    "owner": seam.manifest.seam.owner if seam.manifest else None,
                    "codes": [fault.code for fault in seam.faults],
                }
                for seam in self.environment.discovery.broken
            ],
            "findings": [finding.to_dict() for finding in self.findings],
        }


def _family(row: FamilyRow, justified: "Mapping[str, tuple[Justified, ...]]") -> dict[str, Any]:
    return {
        "family": row.family.name,
        "kind": row.family.kind,
        "summary": row.family.summary,
        "state": row.state,
        "native_symbol": row.symbol.symbol if row.symbol else None,
        "owner": row.owner,
        "note": row.note,
        "seams": [
            {
                "name": entry.seam.name,
                "state": entry.state,
                "owner": entry.seam.owner,
                "upstream_fallback": entry.seam.manifest.upstream.fallback,
                "accepts": entry.seam.manifest.upstream.accepts,
                "tracking": [
                    attrs.asdict(reference) for reference in entry.seam.manifest.upstream.references
                ],
                "distribution": entry.seam.distribution,
                "version": entry.seam.version,
                "review_by": entry.seam.manifest.seam.review_by.isoformat(),
                "justified": [
                    {
                        "recipe": it.recipe.name,
                        "reason": it.entry.reason,
                        "review_by": it.entry.review_by.isoformat(),
                    }
                    for it in justified.get(entry.seam.name, ())
                ],
            }
            for entry in row.seams
        ],
    }


def audit(environment: Environment, *, today: datetime.date | None = None) -> Audit:
    """Audit an environment: what each family resolves to under a recipe without preferences."""
    chooser = Chooser(environment=environment, today=today or datetime.date.today())
    rows = tuple(_row(environment, chooser, family) for family in environment.discovery.families)
    return Audit(environment=environment, families=rows)


def _row(environment: Environment, chooser: Chooser, family: Family) -> FamilyRow:
    seams = environment.discovery.by_family.get(family.name, ())
    choice = chooser.choose(family.name, of_layer=family.kind == "block")
    symbol: NativeSymbol | None = None
    if isinstance(choice, NoProvider):
        state = "refused"
        note = "nothing builds it here"
    elif isinstance(choice, SeamsError):
        state = _STATES.get(type(choice), "refused")
        note = choice.found
    elif isinstance(choice.provider, Seam):
        state = "seam"
        note = family.summary
    else:
        symbol = choice.provider
        retired = [seam for seam in seams if not seam.manifest.experiment]
        state = "superseded" if retired else "native"
        note = family.summary
        if retired:
            gone = " and ".join(
                dict.fromkeys(how_to_remove(seam, environment.distributions) for seam in retired)
            )
            note = f"superseded: native {symbol.symbol!r} in this Megatron; {gone}"
    return FamilyRow(
        family=family,
        state=state,
        symbol=symbol,
        seams=tuple(SeamRow(seam=seam, state=_state(environment, seam, state)) for seam in seams),
        note=note,
    )


def _state(environment: Environment, seam: Seam, family_state: str) -> str:
    """The state of one seam, which may differ from its family's where there are several seams."""
    if environment.allowlist.against(seam.name) is not None:
        return "not allowed"
    if family_state == "superseded" or environment.superseded_by(seam):
        return "superseded"
    if environment.out_of_range(seam) is not None:
        return "broken"
    if seam.manifest.experiment:
        return "experiment"
    return "refused" if family_state == "refused" else "seam"
