"""A built stage compared with its plan: layers, their numbers and slots, MTP depths.

A Megatron whose source was misread may build something else than what was planned. What is compared
here is therefore what stands in the model after construction, not what upstream was given.
"""

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec, get_module
from torch import nn

from megatron_seams.errors import BuildDiffers
from megatron_seams.planning.plan import Custom, Layer, Plan
from megatron_seams.runtime.compat import HybridStackSubmodules
from megatron_seams.runtime.model.refused import KNOWN_STACK

#: The children that upstream's stack has.
_CHILDREN: Final = frozenset({"layers", "final_norm"})
#: The parts of a layer that tell its kind; what they are made of is the backend's choice.
_PARTS: Final = frozenset({"self_attention", "core_attention", "mlp", "mixer"})


def stack_differences(
    stack: Any,
    planned: Sequence[Layer],
    submodules: HybridStackSubmodules,
    built: Mapping[int, nn.Module],
) -> Iterator[BuildDiffers]:
    """Every way in which a built stack is not the planned layers.

    Args:
        stack: Upstream's stack, constructed.
        planned: The layers that it should have, first layer first.
        submodules: The native specs that it was given, before any seam took a slot.
        built: Global layer number -> what the dispatcher of a slot made for it.
    """
    layers = list(stack.layers)
    if len(layers) != len(planned):
        yield _differs(
            planned,
            f"{len(planned)} layers on this stage",
            f"the stack has {len(layers)}",
        )
        return
    seen: dict[int, int] = {}
    for wanted, layer in zip(planned, layers, strict=True):
        first = seen.setdefault(id(layer), wanted.position)
        problem = _problem(wanted, layer, submodules, built)
        if first != wanted.position:
            problem = f"it is the very object of layer {first}"
        elif not isinstance(wanted.provider, Custom) and not _same_settings(layer, stack):
            problem = f"it was built with another configuration than its stack ({_named(layer)})"
        if problem:
            yield _differs([wanted], f"{wanted.family} by {wanted.provider.label}", problem)
    strange = sorted(set(dict(stack.named_children())) - _CHILDREN)
    if strange:
        yield _differs(planned, "a stack of the planned layers alone", f"it also has {strange}")


def mtp_differences(
    model: Any, plan: Plan, submodules: HybridStackSubmodules
) -> Iterator[BuildDiffers]:
    """Every way in which a model's MTP depths are not the planned ones.

    Args:
        model: Upstream's model, constructed; only the last stage has ``mtp``.
        plan: The plan.
        submodules: The native specs that it was given.
    """
    block = getattr(model, "mtp", None)
    depths = [] if block is None else list(block.layers)
    repeated = bool(getattr(model.config, "mtp_use_repeated_layer", False))
    wanted = plan.pattern.mtp_depths if model.post_process else 0
    if len(depths) != (min(1, wanted) if repeated else wanted):
        yield _differs(plan.mtp, f"{wanted} MTP depths", f"the model has {len(depths)}")
        return
    for depth in depths:
        yield from stack_differences(depth.mtp_model_layer, plan.mtp, submodules, {})


def _problem(
    wanted: Layer,
    layer: nn.Module,
    submodules: HybridStackSubmodules,
    built: Mapping[int, nn.Module],
) -> str | None:
    """The fault of the object that stands where a layer was planned; None if it has none."""
    number = getattr(layer, "layer_number", wanted.position)
    if number != wanted.position:
        return f"the layer there has the number {number} ({_named(layer)})"
    made = built.get(wanted.position)
    if made is not None and made is not layer:
        return f"{_named(layer)} stands there, which is not what slot {wanted.provider.slot} built"
    if isinstance(wanted.provider, Custom):
        return None if made is layer else f"{_named(layer)} stands there, which no seam built"
    spec = getattr(submodules, wanted.provider.slot, None)
    if spec is None or spec is IdentityOp:
        return f"slot {wanted.provider.slot} builds nothing, and {_named(layer)} stands there"
    return next(_unlike(layer, spec, ""), None)


def _unlike(module: Any, spec: Any, path: str) -> Iterator[str]:
    """The first parts of a module that are not of their spec's class.

    Only classes that make their own instances can be compared: some of upstream's, such as its norm
    over Transformer Engine, give an instance of another.
    """
    kind = _class_of(spec)
    if kind is not None and not isinstance(module, kind):
        where = f" as its {path}" if path else ""
        yield f"{_named(module)} stands there{where}, where its slot's spec says {kind.__name__}"
        return
    parts = spec.submodules if isinstance(spec, ModuleSpec) else None
    if dataclasses.is_dataclass(parts):
        names = [field.name for field in dataclasses.fields(parts) if field.name in _PARTS]
        for name in names:
            inner, found = getattr(parts, name), getattr(module, name, None)
            if isinstance(found, nn.Module):
                yield from _unlike(found, inner, f"{path}.{name}".lstrip("."))


def _class_of(spec: Any) -> type | None:
    """The class whose instance a spec builds; None where that cannot be told."""
    if isinstance(spec, partial):
        spec = spec.func
    if inspect.ismethod(spec):  # a constructor of another name, `MLP.as_mlp_submodule`
        spec = spec.__self__
    kind = get_module(spec) if isinstance(spec, ModuleSpec) else spec
    plain = isinstance(kind, type) and issubclass(kind, nn.Module)
    return kind if plain and kind.__new__ is object.__new__ else None


def _same_settings(layer: Any, stack: Any) -> bool:
    mine, its = getattr(layer, "config", None), stack.config
    # Upstream may copy the configuration for each layer.
    return mine is None or mine is its or vars(mine) == vars(its)


def _named(module: Any) -> str:
    return f"a {type(module).__name__}"


def _differs(layers: Iterable[Layer], asked: str, found: str) -> BuildDiffers:
    return BuildDiffers(
        asked=asked,
        found=found,
        next=KNOWN_STACK,
        positions=tuple(layer.position for layer in layers),
    )
