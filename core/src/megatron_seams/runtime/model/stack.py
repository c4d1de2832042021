"""Upstream's stack of layers, with a final norm of the backend and with seams in their slots.

Upstream's loop is called with other arguments, not copied: it changed in nearly every release.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from megatron.core.transformer.identity_op import IdentityOp
from torch import nn

from megatron_seams.errors import Refusal, SeamsError, UpstreamForbids
from megatron_seams.runtime.compat import HybridStack, HybridStackSubmodules
from megatron_seams.runtime.model.dispatch import Choice, dispatching_spec
from megatron_seams.runtime.model.fp8 import fp8_faults
from megatron_seams.runtime.model.inspection import stack_differences
from megatron_seams.runtime.model.refused import StackRefused

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_seams.runtime.model.prepare import PreparedPlan


class BackendStack(HybridStack):  # type: ignore[misc]  # Megatron ships no types
    """Upstream's stack with a final norm from the backend.

    Upstream hard-codes Transformer Engine's norm after the last layer. The key stays
    ``final_norm``.

    Args:
        config: The model's configuration.
        submodules: The native layers.
        final_norm: Builds the norm from ``config``, ``hidden_size`` and ``eps``; None leaves
            upstream's own.
        post_layer_norm: Whether there is a final norm.
        post_process: Whether this is the last stage.
        **keywords: As upstream's.
    """

    def __init__(
        self,
        config: "TransformerConfig",
        submodules: HybridStackSubmodules,
        *,
        final_norm: Any = None,
        post_layer_norm: bool = True,
        post_process: bool = True,
        **keywords: Any,
    ) -> None:
        super().__init__(
            config,
            submodules,
            post_layer_norm=post_layer_norm and final_norm is None,
            post_process=post_process,
            **keywords,
        )
        if final_norm is not None:
            self.post_layer_norm = post_layer_norm  # upstream's forward reads it
            if post_process and post_layer_norm:
                self.final_norm = final_norm(
                    config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon
                )


class SeamHybridStack(BackendStack):
    """Upstream's stack with some layers built by seams.

    The slots that carry seams are replaced in a copy of ``submodules``: the model's MTP depths
    build nested plain stacks from the same object, with layers numbered from 1 again, and a seam's
    layer 1 must not appear there.

    Args:
        config: The model's configuration.
        submodules: The native layers; not changed.
        prepared: The plan, with its plugins.
        layer_type_list: The symbols of this stage's layers.
        pp_layer_offset: The number of layers on earlier stages.
        pg_collection: The process groups.
        **keywords: As :class:`BackendStack`.

    Raises:
        StackRefused: Around the refusal of a seam's hook; of ``mla_down_proj_fusion`` with a seam
            in ``mla_layer`` (upstream's fusion edits the submodules of that slot's spec, and a
            dispatching spec has none); of a linear whose widths fp8 does not take; or of a stage
            that was built otherwise than planned.
    """

    def __init__(
        self,
        config: "TransformerConfig",
        submodules: HybridStackSubmodules,
        *,
        prepared: "PreparedPlan",
        pg_collection: "ProcessGroupCollection",
        layer_type_list: list[str],
        pp_layer_offset: int = 0,
        **keywords: Any,
    ) -> None:
        built: dict[int, nn.Module] = {}
        try:
            specs = prepared.seam_layers().specs(config, pg_collection)
            refuse_fused_mla(config, specs)
        except (SeamsError, Refusal) as refusal:
            raise StackRefused.of(refusal) from refusal
        super().__init__(
            config,
            with_seams(submodules, specs, built),
            pg_collection=pg_collection,
            layer_type_list=layer_type_list,
            pp_layer_offset=pp_layer_offset,
            **keywords,
        )
        custom = prepared.plan.custom_layers()
        seams = {number: layer for number, layer in built.items() if number in custom}
        if unfit := tuple(fp8_faults(config, seams)):
            too_odd = Refusal(unfit)
            raise StackRefused.of(too_odd) from too_odd
        layers = prepared.plan.layers[pp_layer_offset : pp_layer_offset + len(layer_type_list)]
        if faults := tuple(stack_differences(self, layers, submodules, built)):
            differing = Refusal(faults)
            raise StackRefused.of(differing) from differing


def with_seams(
    submodules: HybridStackSubmodules,
    specs: "dict[str, dict[int, ModuleSpec]]",
    built: dict[int, nn.Module] | None = None,
) -> HybridStackSubmodules:
    """A copy of ``submodules`` whose carrier slots dispatch on the layer number.

    Args:
        submodules: The native layers; not changed.
        specs: Slot -> global layer number -> spec.
        built: Filled with what is built: global layer number -> layer.
    """
    built = {} if built is None else built
    slots = {
        slot: dispatching_spec(
            Choice(slot=slot, native=_native(submodules, slot), seams=seams, built=built)
        )
        for slot, seams in specs.items()
    }
    return dataclasses.replace(submodules, **slots)


def _native(submodules: HybridStackSubmodules, slot: str) -> Any:
    # Upstream's default for a slot that nothing fills is IdentityOp: a layer that is silently none.
    native = getattr(submodules, slot)
    return None if native is IdentityOp else native


def refuse_fused_mla(
    config: "TransformerConfig", specs: "dict[str, dict[int, ModuleSpec]]"
) -> None:
    """Refuse upstream's fused MLA projection where a seam rides on ``mla_layer``.

    Raises:
        UpstreamForbids: Both are asked for.
    """
    if getattr(config, "mla_down_proj_fusion", False) and "mla_layer" in specs:
        raise UpstreamForbids(
            asked="mla_down_proj_fusion with a seam in slot mla_layer",
            found="upstream's fusion edits the submodules of that slot's spec, which a seam does "
            "not have",
            next="turn the fusion off",
            subject="mla_down_proj_fusion",
            positions=tuple(sorted(specs["mla_layer"])),
        )
