"""Shared by the runtime's tests: test seams, plans over them, and one process's Megatron."""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_seams.families import BUILT_IN, Family
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import FeatureEntry, Model, Parallelism, Recipe
from megatron_seams.seams.discovery import Discovery
from megatron_seams.seams.manifest import parse_manifest
from megatron_seams.seams.seam import Seam
from megatron_seams.upstream.locate import importable_megatron
from megatron_seams.upstream.source import MegatronSource
from megatron_seams.upstream.surface import NativeSurface, read_surface

SEAMS = Path(__file__).parent / "seams"

#: A model small enough to build in no time. Every test that needs other sizes says so.
TINY = {
    "vocab_size": 64,
    "max_sequence_length": 32,
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}
MOE = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 32}
MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_head_dim": 8,
    "qk_pos_emb_head_dim": 8,
    "v_head_dim": 12,
    "rope_type": "rope",
}

PlanOf = Callable[..., Plan]


@functools.cache
def source_in_hand() -> MegatronSource:
    """The source of this run's Megatron; the suite runs on several releases."""
    source, _ = importable_megatron()
    assert source is not None
    return source


@functools.cache
def surface_in_hand() -> NativeSurface:
    """The native surface of this run's Megatron."""
    return read_surface(source_in_hand())


@pytest.fixture(scope="session")
def native() -> Callable[[str], bool]:
    """Whether the Megatron of this run builds a family, or all symbols of a pattern, by itself."""
    surface = surface_in_hand()

    def has(what: str) -> bool:
        """Whether this Megatron has the family, or every symbol of the pattern."""
        symbols = {symbol.symbol for symbol in surface.symbols}
        return surface.of_family(what) is not None or set(what) <= symbols

    return has


def seam(name: str) -> Seam:
    """One of the test seams beside this file."""
    directory = SEAMS / name
    data = (directory / "seam.toml").read_bytes()
    manifest, faults = parse_manifest(data, file=str(directory / "seam.toml"))
    assert manifest is not None, faults
    return Seam(
        manifest=manifest,
        package=name,
        distribution=f"test-{name}",
        version="0.1",
        directory=directory,
        manifest_digest="",
    )


def planner() -> PlanOf:
    """Resolves a pattern over the importable Megatron and the named test seams."""
    source, surface = source_in_hand(), surface_in_hand()

    def plan(
        pattern: str,
        *,
        seams: tuple[str, ...] = (),
        megatron: dict[str, Any] | None = None,
        features: tuple[str | FeatureEntry, ...] = (),
        parallelism: Parallelism | None = None,
        tokens: dict[str, str] | None = None,
        dialect: str = "megatron",
        families: dict[str, str] | None = None,
    ) -> Plan:
        sizes = dict(TINY)
        if set(pattern) & set("+D") or "mla" in {**(tokens or {}), **(families or {})}.values():
            del sizes["num_query_groups"]  # upstream's trainer refuses it with latent attention
        installed = tuple(seam(name) for name in seams)
        introduced = tuple(
            Family(name=one.manifest.family.name, summary=one.manifest.family.summary)
            for one in installed
            if one.manifest.family is not None
        )
        discovery = Discovery(seams=installed, families=(*BUILT_IN.values(), *introduced))
        recipe = Recipe.of_pattern(pattern, dialect=dialect, depth=None)
        recipe = Recipe(
            schema=recipe.schema,
            model=Model(name=pattern, pattern=pattern, dialect=dialect),
            dialect=type(recipe.dialect)(tokens=tokens or {}),
            families=families or {},
            features=tuple(
                FeatureEntry(family=one) if isinstance(one, str) else one for one in features
            ),
            megatron=sizes | (megatron or {}),
            parallelism=parallelism or Parallelism(),
        )
        return resolve(recipe, Environment(surface=surface, discovery=discovery, source=source))

    return plan


@pytest.fixture(scope="session")
def plan_of() -> Iterator[PlanOf]:
    """Resolve a pattern over the importable Megatron and the named test seams."""
    sys.path.insert(0, str(SEAMS))
    yield planner()
    sys.path.remove(str(SEAMS))


@pytest.fixture(scope="module")
def world() -> Iterator[Any]:
    """One process's process groups over gloo, for the time of a test module."""
    from megatron_seams.runtime.cpu.world import cpu_world

    with cpu_world() as pg_collection:
        yield pg_collection


@pytest.fixture(autouse=True)
def no_losses_of_other_tests(request: pytest.FixtureRequest) -> None:
    """Tests of one world train models of several depths; upstream's records fit the first alone."""
    if "world" in request.fixturenames:
        from megatron_seams.runtime.compat import forget_logged_losses

        forget_logged_losses()
