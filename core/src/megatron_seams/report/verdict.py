"""The verdict: what the whole page comes to, in one line and five figures."""

from collections.abc import Iterator, Sequence

import attrs

from megatron_seams.base.wording import counted
from megatron_seams.governance.gate import Gate
from megatron_seams.report.cards import Card
from megatron_seams.report.strips import Strip


@attrs.frozen
class Figure:
    """A figure of the verdict.

    Attributes:
        label: What is counted.
        value: The count, in words where it needs some.
        state: ``good``, ``look`` or ``bad``.
    """

    label: str
    value: str
    state: str


@attrs.frozen(kw_only=True)
class Verdict:
    """The verdict.

    Attributes:
        says: One line.
        state: ``good``, ``look`` or ``bad``: the worst figure's.
        figures: What it was made of.
    """

    says: str
    state: str
    figures: tuple[Figure, ...]

    @classmethod
    def of(cls, strips: Sequence[Strip], cards: Sequence[Card], gate: Gate | None) -> "Verdict":
        """The verdict on models, seams, and the checks of a workspace, where there is one."""
        figures = tuple(_figures(strips, cards, gate))
        wrong = [it for it in figures if it.state == "bad"]
        asked = [it for it in figures if it.state == "look"]
        worst = wrong or asked
        says = "; ".join(f"{it.label} {it.value}" for it in worst)
        return cls(
            says=f"{says[:1].upper()}{says[1:]}" if worst else "All is in order",
            state="bad" if wrong else "look" if asked else "good",
            figures=figures,
        )


def _figures(strips: Sequence[Strip], cards: Sequence[Card], gate: Gate | None) -> Iterator[Figure]:
    if strips:
        refused = sum(bool(strip.reasons) for strip in strips)
        yield Figure("refused", f"{refused} of {len(strips)}", "bad" if refused else "good")
    broken = sum(bool(card.faults) for card in cards)
    if broken:
        yield Figure("broken", str(broken), "bad")
    gone = sum(bool(card.goes) for card in cards)
    yield Figure("superseded", str(gone), "look" if gone else "good")
    overdue = sum(card.overdue for card in cards)
    due = sum(bool(card.review) for card in cards)
    late = f"{due}, {overdue} overdue" if overdue else str(due)
    yield Figure("reviews due", late, "bad" if overdue else "look" if due else "good")
    trial = sum(card.state == "experiment" for card in cards)
    yield Figure("experiments", str(trial), "good")
    if gate is not None:
        errors = sum(one.severity == "error" for one in gate.verdicts)
        warnings = len(gate.verdicts) - errors
        counts = f"{counted(errors, 'error')}, {counted(warnings, 'warning')}"
        yield Figure("checks", counts, "bad" if errors else "look" if warnings else "good")
