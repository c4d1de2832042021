"""The kit's test classes. A seam's own suite inherits one of them; ``pytest --seam`` runs them."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import pytest

from megatron_seams.errors import Refusal, Unsupported
from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.resolver import resolve
from megatron_seams.runtime.conformance import rules
from megatron_seams.runtime.conformance.subject import (
    OVER_RANKS,
    Subject,
    find_subject,
    read_fragment,
)
from megatron_seams.runtime.plugins import load_plugins
from megatron_seams.seams.manifest import CAPABILITIES
from megatron_seams.seams.options import class_differences
from megatron_seams.upstream.locate import open_megatron
from megatron_seams.upstream.surface import NativeSurface, read_surface

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_seams.runtime.compat import HybridModel
    from megatron_seams.runtime.conformance.parallel import Spread

#: Imports a package and prints which of the forbidden ones it imported.
_IMPORT = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(" ".join(sorted({"torch", "megatron", "transformer_engine"} & set(sys.modules))))
"""


@attrs.frozen
class _NoOptions:
    """The options of a plugin that takes none."""


class SeamConformance:
    """The tests of every seam.

    Attributes:
        seam: The seam's name.
        options: ``[seams.NAME]`` of the recipe that it is built with.
        megatron: ``[megatron]`` of that recipe, over the kit's own small sizes.
    """

    seam: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    megatron: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, request: pytest.FixtureRequest) -> Subject:
        """The seam under test."""
        name, options, megatron = cls.seam, cls.options, cls.megatron
        if not name:
            name = request.config.getoption("--seam", default="")
            file = request.config.getoption("--seam-options", default=None)
            if file is not None:
                options, megatron = read_fragment(Path(file), name)
        return find_subject(name, read_environment(), options, megatron)

    @pytest.fixture(scope="class")
    @classmethod
    def world(cls, subject: Subject) -> "Iterator[ProcessGroupCollection]":
        """Megatron's process groups, of this process alone."""
        from megatron_seams.runtime.cpu.world import cpu_world

        del subject  # asked for first: a missing seam is reported before torch is imported
        with cpu_world() as groups:
            yield groups

    @pytest.fixture(scope="class")
    @classmethod
    def plan(cls, subject: Subject) -> Plan:
        """The plan of the small model."""
        return subject.plan()

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, plan: Plan, world: "ProcessGroupCollection") -> "HybridModel":
        """The small model."""
        from megatron_seams.runtime.conformance.models import build

        return build(plan, world)

    @pytest.fixture(scope="class")
    @classmethod
    def spread(
        cls,
        subject: Subject,
        world: "ProcessGroupCollection",
        tmp_path_factory: pytest.TempPathFactory,
    ) -> "Spread":
        """The findings on two ranks."""
        from megatron_seams.runtime.conformance.parallel import over_ranks

        return over_ranks(subject, world, tmp_path_factory.mktemp("conformance"))

    def test_importing_the_package_is_light(self, subject: Subject) -> None:
        """The import runs in a process of its own, so that nothing else can have imported them."""
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT, subject.seam.package],
            # Found there as it was found here.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            rules.LIGHT_IMPORT.broken(f"it cannot be imported:\n{done.stderr.strip()}")
        if brought := done.stdout.strip():
            rules.LIGHT_IMPORT.broken(f"import {subject.seam.package} imports {brought}")

    def test_the_plugin_agrees_with_the_manifest(self, subject: Subject) -> None:
        """The plugin loads, with the test class's options; its class has those of the manifest."""
        seam, listed = subject.seam, subject.seam.manifest.options
        try:
            loaded = load_plugins([seam], {seam.name: subject.options})
        except Refusal as refusal:
            rules.HOOKS.broken(str(refusal))
        if listed is None:
            return  # the manifest leaves them to the class
        plugin = loaded.manager.get_plugin(seam.name)
        class_of = getattr(plugin, seam.manifest.options_hook, lambda: _NoOptions)
        if found := tuple(class_differences(listed, class_of())):
            rules.HOOKS.broken("; ".join(found))

    @pytest.mark.parametrize("capability", CAPABILITIES)
    def test_what_it_does_not_support_is_refused(self, subject: Subject, capability: str) -> None:
        """A capability is refused by the resolver exactly where the manifest does not have it."""
        try:
            resolve(subject.recipe(capability), subject.environment)
        except Refusal as refusal:
            unsupported = [it for it in refusal.reasons if isinstance(it, Unsupported)]
            refused = any(it.key == capability for it in unsupported)
            others = [str(it) for it in refusal.reasons if not isinstance(it, Unsupported)]
            needs = [it.key for it in unsupported if it.key != capability]
        else:
            refused, others, needs = False, [], []
        if subject.supports(capability):
            if refused or others or needs:
                why = "; ".join(others) or f"{', '.join(map(str, needs))} = false"
                rules.REFUSED.broken(f"{capability} = true, and yet: {why}")
        elif not refused:
            rules.REFUSED.broken(f"{capability} = false, and a plan with it is made")

    def test_forward_returns_what_it_must(self, model: "HybridModel", plan: Plan) -> None:
        """Shapes and dtypes are compared inside a small model."""
        from megatron_seams.runtime.conformance.checks import check_forward

        check_forward(model, plan)

    def test_gradients_reach_every_parameter(self, model: "HybridModel", plan: Plan) -> None:
        """Every gradient is finite and not all zero."""
        from megatron_seams.runtime.conformance.checks import check_gradients

        check_gradients(model, plan)

    def test_the_same_twice_to_the_bit(self, model: "HybridModel") -> None:
        """Forward and backward passes are compared bit by bit."""
        from megatron_seams.runtime.conformance.checks import check_determinism

        check_determinism(model)

    def test_no_token_sees_a_later_one(self, model: "HybridModel") -> None:
        """The logits before each token are compared bit by bit with those of another ending."""
        from megatron_seams.runtime.conformance.visibility import check_causal

        check_causal(model)

    def test_no_row_sees_another(self, model: "HybridModel") -> None:
        """The logits of each row are compared bit by bit with those beside another row."""
        from megatron_seams.runtime.conformance.visibility import check_rows_apart

        check_rows_apart(model)

    def test_activation_checkpointing_changes_no_gradient(
        self, model: "HybridModel", plan: Plan
    ) -> None:
        """Each module of the seam is run under ``torch.utils.checkpoint``."""
        from megatron_seams.runtime.conformance.checks import check_recompute

        check_recompute(model, plan)

    def test_no_wrapper_is_in_the_state_dict(self, model: "HybridModel", plan: Plan) -> None:
        """A checkpoint has the seam's own names, which outlive the code."""
        from megatron_seams.runtime.conformance.checks import check_names

        check_names(model, plan)

    def test_the_sharded_state_comes_back(
        self, model: "HybridModel", plan: Plan, world: "ProcessGroupCollection"
    ) -> None:
        """Upstream's distributed checkpointing loads it into a model with other weights."""
        import torch

        from megatron_seams.runtime.conformance.checks import check_round_trip
        from megatron_seams.runtime.conformance.models import build

        other = build(plan, world)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        check_round_trip(model, other, plan)

    def test_packed_documents_do_not_leak(
        self, subject: Subject, world: "ProcessGroupCollection"
    ) -> None:
        """Each document has the logits that it has alone, and no token of it sees a later one."""
        from megatron_seams.runtime.conformance.checks import check_packed
        from megatron_seams.runtime.conformance.models import DOCUMENTS, build, packed
        from megatron_seams.runtime.conformance.visibility import check_causal

        self._claimed(subject, "packed-sequences")
        model = build(subject.plan("packed-sequences"), world)
        check_packed(model)
        check_causal(model, packed(*DOCUMENTS))

    def test_inference_continues_what_it_began(
        self, subject: Subject, world: "ProcessGroupCollection"
    ) -> None:
        """Token by token, the logits are those of the whole row."""
        from megatron_seams.runtime.conformance.checks import check_inference
        from megatron_seams.runtime.conformance.models import build

        self._claimed(subject, "inference")
        check_inference(build(subject.plan("inference"), world))

    @pytest.mark.parametrize("capability", OVER_RANKS)
    def test_two_ranks_compute_what_one_does(
        self, subject: Subject, spread: "Spread", capability: str
    ) -> None:
        """Two processes over gloo load one rank's checkpoint; their losses are its own."""
        self._claimed(subject, capability)
        if differs := spread.differs[capability]:
            rules.SPREAD.broken(f"{capability}: {differs}")

    def test_fp8_takes_its_widths_or_is_refused(
        self,
        model: "HybridModel",
        plan: Plan,
        world: "ProcessGroupCollection",
        request: pytest.FixtureRequest,
    ) -> None:
        """The linears of one rank, and of each of two tensor-parallel ranks; skipped if refused."""
        from megatron_seams.runtime.conformance.models import losses_of, tokens
        from megatron_seams.runtime.conformance.widths import check_widths, widths_under_fp8

        losses_of(model, tokens())  # which makes whatever the constructor did not
        refused = [check_widths("one rank", widths_under_fp8(model, plan, world))]
        spread: Spread = request.getfixturevalue("spread")
        refused.append(check_widths("two ranks", spread.widths))
        if reasons := "; ".join(filter(None, refused)):
            pytest.skip(f"with fp8 a model of these sizes is refused: {reasons}")

    @staticmethod
    def _claimed(subject: Subject, capability: str) -> None:
        if not subject.supports(capability):
            pytest.skip(f"{subject.seam.name} says {capability} = false")


class LayerConformance(SeamConformance):
    """The tests of a seam that builds layers."""

    @pytest.fixture(scope="class")
    @classmethod
    def megatrons(cls, request: pytest.FixtureRequest) -> Sequence[Path]:
        """Further megatron-cores (wheels or folders) whose keywords the layers are to take.

        Override it to name the other releases of the manifest's range.
        """
        return [Path(it) for it in request.config.getoption("--seam-megatron", default=[])]

    @pytest.fixture(scope="class")
    @classmethod
    def surfaces(cls, subject: Subject, megatrons: Sequence[Path]) -> list[NativeSurface]:
        """The Megatrons whose keywords the layers must take; the installed one first."""
        others = [read_surface(open_megatron(it)) for it in megatrons]
        wanted = subject.seam.manifest.requires.range
        return [
            subject.environment.surface,
            *(it for it in others if it.version and wanted.contains(it.version, prereleases=True)),
        ]

    def test_the_keywords_of_every_supported_megatron_are_taken(
        self, plan: Plan, model: "HybridModel", surfaces: list[NativeSurface]
    ) -> None:
        """The layer is built with exactly the keywords that each release passes."""
        from megatron_seams.runtime.conformance.checks import check_keywords

        check_keywords(plan, model, surfaces)

    def test_a_layer_of_a_later_stage_keeps_its_number(
        self, plan: Plan, model: "HybridModel", subject: Subject
    ) -> None:
        """The number is global, whatever the stage's offset is."""
        from megatron_seams.runtime.conformance.checks import check_numbers

        check_numbers(plan, model, subject.environment.surface)


class FeatureConformance(SeamConformance):
    """The tests of a feature: those of every seam."""
