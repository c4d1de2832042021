"""The specs of a plan's seam layers, from their plugins' hooks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs
from megatron.core import __version__ as megatron_version
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from packaging.version import Version

from megatron_seams.errors import HookMissing
from megatron_seams.hookspecs import Backend, LayerContext
from megatron_seams.planning.plan import Custom, Plan
from megatron_seams.runtime.plugins import LoadedSeams
from megatron_seams.seams.seam import Seam

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.transformer_config import TransformerConfig


@attrs.frozen(kw_only=True)
class SeamLayers:
    """The layers that seams build, and what their hooks need.

    Attributes:
        layers: Global layer number -> its seam and slot.
        loaded: The plugins.
        backend: Where the seams take their linears and norms from.
    """

    layers: Mapping[int, Custom]
    loaded: LoadedSeams
    backend: Backend

    @classmethod
    def of_plan(cls, plan: Plan, loaded: LoadedSeams, backend: Backend) -> "SeamLayers":
        """The seam layers of ``plan``."""
        return cls(layers=plan.custom_layers(), loaded=loaded, backend=backend)

    def specs(
        self, config: "TransformerConfig", pg_collection: "ProcessGroupCollection"
    ) -> dict[str, dict[int, ModuleSpec]]:
        """Slot -> global layer number -> spec, for the layers of all stages.

        Each seam's hook is called once for all its layers.

        Raises:
            HookMissing: A hook returned something else than a ``ModuleSpec``.
        """
        specs: dict[str, dict[int, ModuleSpec]] = {}
        for seam, slot, numbers in self._seams():
            context = LayerContext(
                config=config,
                options=self.loaded.options[seam.name],
                megatron_version=Version(megatron_version),
                backend=self.backend,
                pg_collection=pg_collection,
                slot=slot,
                layer_numbers=numbers,
            )
            spec = self._whole_layer(seam, context)
            specs.setdefault(slot, {}).update(dict.fromkeys(numbers, spec))
        return specs

    def _seams(self) -> list[tuple[Seam, str, tuple[int, ...]]]:
        """Each seam with its slot and its layer numbers, by the seam's name."""
        grouped: dict[tuple[str, str], list[int]] = {}
        seams: dict[str, Seam] = {}
        for number, provider in sorted(self.layers.items()):
            seams[provider.seam.name] = provider.seam
            grouped.setdefault((provider.seam.name, provider.slot), []).append(number)
        return [
            (seams[name], slot, tuple(numbers)) for (name, slot), numbers in sorted(grouped.items())
        ]

    def _whole_layer(self, seam: Seam, context: LayerContext) -> ModuleSpec:
        given = self.loaded.call(seam, context)
        if not isinstance(given, ModuleSpec):
            raise HookMissing(
                asked=f"a ModuleSpec from hook {seam.manifest.hook!r} of {seam.claim}",
                found=f"it returned {type(given).__name__}",
                next=f"ask {seam.owner}: the hook returns a ModuleSpec",
                subject=seam.name,
            )
        carrier = seam.manifest.carrier
        if carrier is None or carrier.part_in(context.slot) == "layer":
            return given
        rms_norm = context.config.normalization == "RMSNorm"
        return ModuleSpec(
            module=MambaLayer,
            submodules=MambaLayerSubmodules(
                # A seam's mixer does not fuse the norm into its first linear as upstream's does.
                norm=self.backend.layer_norm(rms_norm=rms_norm),
                mixer=given,
                mamba_bda=get_bias_dropout_add,
            ),
        )
