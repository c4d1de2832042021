"""Patterns and pipelines: our verdict is the one of upstream's own parser and validate_args.

Stricter only where upstream itself fails later, which every test below asks upstream about.
"""

import functools
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import attrs
import pytest

import forked
import megatron_releases
from megatron_seams.errors import Refusal
from megatron_seams.planning.environment import Environment, read_environment
from megatron_seams.planning.lowering import lowered_pattern
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.pipeline import FIRST, LAST, one_rank
from megatron_seams.recipes.recipe import Parallelism, Recipe
from megatron_seams.seams.discovery import Discovery
from seam_support import run_python

pytestmark = [pytest.mark.megatron, pytest.mark.published]

REAL = Path(__file__).with_name("upstream_verdict.py")
DATA = json.loads((Path(__file__).parent / "data" / "upstream_patterns.json").read_text())
RELEASES = (*megatron_releases.RUN, "in hand")

#: Parts that are legal each by itself and mix what one part may not, and corners of the syntax.
CORNERS = (
    *("DEDE/*E", "M*M*/MD/MD", "MD/*", "M+/M*/M*", "M*/+", "D/D+", "+D/*-/*-"),
    *("M*|MD", "M*/*D", "MD/*+", "*|M|+", "M/D*"),
    *("", "|||", "//", "M//", "M|M//", "M/*/", "M//*", "|M|", "M||", "|||M*-", "M/|", "M /*"),
)
#: Layers that cannot be: upstream accepts them and its configuration divides by their number.
WITHOUT_LAYERS = {"", "|", "|||", "/", "//", "/M", "/MM/MM"}


@attrs.frozen
class Case:
    """One pattern on so many pipeline ranks, with the layers of the first and last stage."""

    pattern: str
    ranks: int
    first: int | None = None
    last: int | None = None

    def recipe(self) -> Recipe:
        """The recipe that asks for it."""
        asked = Recipe.of_pattern(self.pattern, dialect="megatron", depth=None)
        ends = {FIRST: self.first, LAST: self.last}
        return attrs.evolve(
            asked,
            parallelism=Parallelism(pipeline_parallel=self.ranks),
            megatron={key: size for key, size in ends.items() if size is not None},
        )


def _stages(pattern: str) -> int:
    return pattern.partition("/")[0].count("|") + 1


PATTERNS = tuple(
    Case(pattern, _stages(pattern))
    for pattern in sorted({*DATA["unit_tests"], *DATA["in_use"], *CORNERS})
)
#: Layers of the first or last stage that a case asks for: none, too few, fitting, too many.
ENDS = (None, 0, 1, 3, 7, 9)
RANKS = (1, 2, 4)
PIPELINES = (
    *(Case("ME*-ME*-", *sizes) for sizes in product(RANKS, ENDS, ENDS)),
    *(Case("M|E|*|-", ranks, *ends) for ranks in (1, 2, 3, 4, 8) for ends in ((), (1,), (None, 2))),
    *(Case("M||E", ranks) for ranks in (1, 2, 3)),
    *(Case("M*E", 9), Case("ME*-ME*-", 4, 11), Case("ME*-ME*-", 4, None, 11)),
)
CASES = tuple(dict.fromkeys((*PATTERNS, *PIPELINES)))


@functools.cache
def _upstream(release: str) -> dict[Case, dict[str, Any]]:
    """Upstream's verdict on every case."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cases.json"
        file.write_text(json.dumps([attrs.asdict(case) for case in CASES]))
        if release in megatron_releases.RUN:
            path = [megatron_releases.installation(release)]
            done = run_python("-W", "ignore", REAL, file, path=path, code=0)
        else:
            done = forked.run_python(REAL, file, code=0)
    verdicts = json.loads(done.stdout.strip().splitlines()[-1])
    return dict(zip(CASES, verdicts, strict=True))


@functools.cache
def _environment(release: str) -> Environment:
    """A release of Megatron without any seam."""
    published = release in megatron_releases.RUN
    folder = megatron_releases.installation(release) if published else None
    return read_environment(folder, discovery=Discovery())


@functools.cache
def _ours(case: Case, release: str) -> Plan | Refusal:
    try:
        plan = resolve(case.recipe(), _environment(release))
    except Refusal as refusal:
        return refusal
    unstarted = one_rank(plan.parallelism, plan.pattern)
    return Refusal([unstarted]) if unstarted else plan


def _accepts(answer: dict[str, Any]) -> bool:
    return answer["parser"] is None and answer["arguments"] is None


def _fails_later(case: Case, answer: dict[str, Any]) -> bool:
    """Whether upstream accepts a case and then cannot build it, or builds other layers."""
    if answer["configuration"] is not None or any(isinstance(it, str) for it in answer["stages"]):
        return True
    built, numbered = "", True
    for _, offset, layers in answer["stages"]:
        numbered &= not layers or offset == len(built)
        built += layers
    return not numbered or built != case.pattern.partition("/")[0].replace("|", "")


@pytest.mark.parametrize("release", RELEASES)
def test_the_verdict_is_upstreams_or_upstream_fails_later(release: str) -> None:
    wrong = []
    for case, answer in _upstream(release).items():
        ours = _ours(case, release)
        if isinstance(ours, Plan) != (_accepts(answer) and not _fails_later(case, answer)):
            wrong.append((case, ours, answer))
    assert not wrong, wrong[:5]


@pytest.mark.parametrize("release", RELEASES)
def test_patterns_that_upstream_accepts_and_cannot_build_have_no_layer(release: str) -> None:
    """The exceptions among patterns, by name: a new one is seen."""
    answer = _upstream(release)
    later = {it.pattern for it in PATTERNS if _accepts(answer[it]) and _fails_later(it, answer[it])}
    assert later == WITHOUT_LAYERS
    for pattern in WITHOUT_LAYERS:
        assert answer[Case(pattern, _stages(pattern))]["configuration"].startswith("ZeroDivision")


@pytest.mark.parametrize("release", RELEASES)
def test_a_plan_has_the_layers_stages_and_ranks_that_upstream_cuts(release: str) -> None:
    planned = 0
    for case, answer in _upstream(release).items():
        ours = _ours(case, release)
        if isinstance(ours, Refusal):
            continue
        planned += 1
        pipeline = ours.pipeline
        symbols = "".join(layer.provider.symbol for layer in ours.layers)
        assert answer["layers"] == len(ours.layers)
        assert answer["mtp_depths"] == ours.pattern.mtp_depths
        assert answer["virtual"] == pipeline.virtual
        # Where a stage without layers begins means nothing.
        assert [[rank, at if on else None, on] for rank, at, on in answer["stages"]] == [
            [pipeline.rank_of(stage), part.start if symbols[part] else None, symbols[part]]
            for stage, part in enumerate(pipeline.slices())
        ], case
        assert [layer.stage for layer in ours.layers] == list(pipeline.stages)
        assert all(layer.rank == pipeline.rank_of(layer.stage) for layer in ours.layers)
        parts = lowered_pattern(ours).split("/")
        assert parts[0] == case.pattern.partition("/")[0]
        assert len(parts) == 1 + ours.pattern.mtp_depths
    assert planned > 150


@pytest.mark.parametrize("release", RELEASES)
def test_a_first_and_last_stage_with_more_layers_than_there_are_repeat_some(release: str) -> None:
    """The exception among pipelines: upstream's checks pass, and stages share layers."""
    case = Case("ME*-ME*-", 4, 7, 3)
    answer = _upstream(release)[case]
    assert _accepts(answer)
    assert answer["configuration"] is None
    assert [layers for _, _, layers in answer["stages"]] == ["ME*-ME*", "", "", "E*-"]
    ours = _ours(case, release)
    assert isinstance(ours, Refusal)
    assert "the pattern has 8 layers" in ours.reasons[0].found
