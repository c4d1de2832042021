"""The rules that one process can check, each a function that raises :class:`RuleBroken`."""

import itertools
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron_seams.planning.plan import Plan
from megatron_seams.runtime.backends.local import LocalBackend
from megatron_seams.runtime.checkpoint import load_checkpoint, model_entries, save_checkpoint
from megatron_seams.runtime.conformance import rules
from megatron_seams.runtime.conformance.models import (
    DOCUMENTS,
    Part,
    kind_of,
    logits_of,
    losses_of,
    packed,
    parts,
    tokens,
)
from megatron_seams.runtime.model.dispatch import Choice, dispatching_spec
from megatron_seams.runtime.model.seam_layers import SeamLayers
from megatron_seams.runtime.plugins import load_plugins
from megatron_seams.upstream.surface import NativeSurface

if TYPE_CHECKING:
    from megatron_seams.runtime.compat import HybridModel

#: The names that wrappers of torch and Megatron give to the module inside.
_WRAPPED: Final = frozenset({"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped"})
#: How far sums of floats in another order may differ.
_CLOSE: Final = 1e-4


def check_forward(model: "HybridModel", plan: Plan) -> None:
    """Each part returns the shapes and dtypes that its inputs call for."""
    seen: list[tuple[Part, tuple[Any, ...], dict[str, Any], Any]] = []

    def note(part: Part) -> Callable[..., None]:
        return lambda _, args, kwargs, output: seen.append((part, args, kwargs, output))

    found = parts(model, plan)
    hooks = [it.module.register_forward_hook(note(it), with_kwargs=True) for it in found]
    raised = None
    try:
        losses_of(model, tokens())
    except Exception as error:  # noqa: BLE001 - whatever a seam's forward raises breaks the rule
        raised = f"{type(error).__name__}: {error}"
    finally:
        for hook in hooks:
            hook.remove()
    # A wrong output explains more than the error that it leads to.
    for part, args, kwargs, output in seen:
        given = args[0] if args else kwargs.get("hidden_states", kwargs.get("input_ids"))
        wrong = _wrong_output(part, given, output, model.config.hidden_size)
        if wrong:
            rules.FORWARD.broken(f"{part.key} ({part.kind}) {wrong}")
    if raised:
        rules.FORWARD.broken(raised)
    called = [part.key for part, *_ in seen]
    if not found or called != [part.key for part in found]:
        rules.FORWARD.broken(f"called were {called}; built {[part.key for part in found]}")


def _wrong_output(part: Part, given: Any, output: Any, hidden: int) -> str | None:
    bias = None
    if part.kind == "mixer":
        if not isinstance(output, tuple) or len(output) != 2:
            return f"returned {_described(output)}, and not (output, bias)"
        output, bias = output
    elif part.kind == "layer" and isinstance(output, tuple):
        output = output[0]  # upstream's own layers return their context beside it
    if part.kind == "embedding":
        expected = torch.Size((*given.shape, hidden))
        dtype = torch.get_default_dtype()
    else:
        expected, dtype = given.shape, given.dtype
    if not isinstance(output, Tensor) or output.shape != expected or output.dtype != dtype:
        return f"was given {_described(given)} and returned {_described(output)}"
    if bias is not None and (not isinstance(bias, Tensor) or bias.shape != (hidden,)):
        return f"returned the bias {_described(bias)}"
    return None


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {value.dtype}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_described, value))})"
    return type(value).__name__


def gradients_of(model: "HybridModel") -> dict[str, Tensor | None]:
    """The gradients of the mean loss, by the parameters' names; the parameters keep none."""
    model.zero_grad(set_to_none=True)
    torch.autograd.backward(losses_of(model, tokens()).mean())
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def check_gradients(model: "HybridModel", plan: Plan) -> None:
    """Every parameter of the seam gets a gradient."""
    found = gradients_of(model)
    own = [name for name in found if _of_parts(name, parts(model, plan))]
    faults = [f"{name}: {fault}" for name in own if (fault := _no_gradient(found[name]))]
    if faults:
        rules.GRADIENTS.broken("; ".join(faults))


def _of_parts(name: str, found: Iterable[Part]) -> bool:
    return any(name.startswith(f"{part.key}.") for part in found)


def _no_gradient(gradient: Tensor | None) -> str | None:
    if gradient is None:
        return "no gradient"
    if not gradient.isfinite().all():
        return "not finite"
    return None if gradient.any() else "all zero"


def check_determinism(model: "HybridModel") -> None:
    """Two passes over the same tokens give the same bits."""
    once, again = ((losses_of(model, tokens()).detach(), gradients_of(model)) for _ in range(2))
    if not torch.equal(once[0], again[0]):
        rules.DETERMINISTIC.broken("two forward passes gave different losses")
    changed = [name for name, value in once[1].items() if not _same(value, again[1][name])]
    if changed:
        rules.DETERMINISTIC.broken(f"two backward passes differ for {', '.join(changed)}")


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def check_recompute(model: "HybridModel", plan: Plan) -> None:
    """Torch's activation checkpointing of each part changes no gradient."""
    expected = gradients_of(model)
    found = parts(model, plan)
    for part in found:
        part.module.forward = _recomputed(part.module.forward)
    try:
        got = gradients_of(model)
    except Exception as error:  # noqa: BLE001 - torch names what a recomputation did otherwise
        rules.RECOMPUTE.broken(f"{type(error).__name__}: {error}")
    finally:
        for part in found:
            del part.module.forward  # the class's own again
    changed = [name for name, value in expected.items() if not _same(value, got[name])]
    if changed:
        rules.RECOMPUTE.broken(f"the gradients differ for {', '.join(changed)}")


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)


def check_names(model: "HybridModel", plan: Plan) -> None:
    """No name in the state dict is a wrapper's."""
    for part in parts(model, plan):
        own = {name for name, _ in part.module.named_parameters()}
        wrapped = sorted(name for name in own if _WRAPPED.intersection(name.split(".")))
        if wrapped:
            rules.NO_WRAPPER.broken(f"{part.key} has {', '.join(wrapped)}")
        children = dict(part.module.named_children())
        if len(children) != 1 or any("." not in name for name in own):
            continue
        ((name, child),) = children.items()
        if any(child.children()):
            # One child, which has children, and nothing beside it: that child is the module.
            rules.NO_WRAPPER.broken(
                f"all that {part.key} ({type(part.module).__name__}) holds is in its one child "
                f"{name!r} ({type(child).__name__})"
            )


def check_round_trip(model: "HybridModel", other: "HybridModel", plan: Plan) -> None:
    """A saved model comes back in another one that had other weights."""
    own = {
        name: value
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor) and _of_parts(name, parts(model, plan))
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_checkpoint(model, "", Path(folder))
            load_checkpoint(other, Path(folder))
        except Exception as error:  # noqa: BLE001 - upstream's and torch's messages name the key
            rules.ROUND_TRIP.broken(f"{type(error).__name__}: {error}")
    loaded = other.state_dict()
    changed = sorted(name for name, value in own.items() if not torch.equal(loaded[name], value))
    if changed:
        rules.ROUND_TRIP.broken(
            f"{', '.join(changed)} did not come back; saved were "
            f"{', '.join(sorted(model_entries(model)))}"
        )


def check_packed(model: "HybridModel") -> None:
    """A document of a packed row has the logits that it has alone."""
    row = tokens(rows=1)[:, :-1]
    with torch.no_grad():
        whole = logits_of(model, row, packed_seq_params=packed(*DOCUMENTS))
    for start, end in itertools.pairwise(DOCUMENTS):
        with torch.no_grad():
            alone = logits_of(
                model, row[:, start:end].contiguous(), packed_seq_params=packed(0, end - start)
            )
        worst = float((whole[:, start:end] - alone).abs().max())
        if worst > _CLOSE:
            rules.PACKED.broken(
                f"the logits of the document at tokens {start} to {end} differ by {worst:.2g} from "
                "those that it has alone"
            )


def check_inference(model: "HybridModel") -> None:
    """Token by token, from the state that it keeps, a model has the logits of the whole row."""
    row = tokens()[:, :-1]
    model.eval()
    with torch.no_grad():
        whole = logits_of(model, row)
        context = StaticInferenceContext(
            max_batch_size=row.shape[0], max_sequence_length=row.shape[1]
        )
        start = row.shape[1] // 2
        given = [(0, start), *((at, at + 1) for at in range(start, row.shape[1]))]
        for begin, end in given:
            logits = logits_of(
                model,
                row[:, begin:end],
                begin=begin,
                inference_context=context,
                runtime_gather_output=True,
            )
            context.sequence_len_offset += end - begin
            worst = float((logits[:, -1] - whole[:, end - 1]).abs().max())
            if worst > _CLOSE:
                rules.INFERENCE.broken(
                    f"the logits after token {end} differ by {worst:.2g} from those of a forward "
                    "pass over the row"
                )


def check_numbers(plan: Plan, model: "HybridModel", surface: NativeSurface) -> None:
    """A layer that is the third of the model, and the first of its stage, has number 3."""
    for slot, spec, _ in layer_specs(plan, model):
        symbol = surface.of_slot(slot)
        layer = _built(spec, slot, model, symbol.keywords if symbol else ())
        for what, module in (("layer", layer), ("mixer", getattr(layer, "mixer", None))):
            number = getattr(module, "layer_number", None)
            if number not in (None, _NUMBER) or (what == "layer" and number is None):
                rules.NUMBERS.broken(
                    f"the {what} ({type(module).__name__}) was given {_NUMBER} and calls itself "
                    f"{number}"
                )


#: The number of a layer that is the first of its stage, after two others.
_NUMBER: Final = 3


def _built(spec: ModuleSpec, slot: str, model: "HybridModel", keywords: Iterable[str]) -> nn.Module:
    """One layer as upstream's loop builds it on a second stage."""
    choice = Choice(slot=slot, native=None, seams={_NUMBER: spec})
    layer: nn.Module = build_module(dispatching_spec(choice), **passed(model, keywords))
    return layer


def passed(model: "HybridModel", keywords: Iterable[str]) -> dict[str, Any]:
    """A value for each keyword that a stack's loop passes, for a layer of a second stage."""
    known = {
        "config": model.config,
        "layer_number": _NUMBER,
        "pg_collection": model.pg_collection,
        "pp_layer_offset": _NUMBER - 1,
        "add_layer_offset": False,
        "is_mtp_layer": False,
        "name": f"decoder.layers.{_NUMBER - 1}",
    }
    return {keyword: known.get(keyword) for keyword in keywords}


def check_keywords(plan: Plan, model: "HybridModel", surfaces: Iterable[NativeSurface]) -> None:
    """A layer is built with exactly the keywords that each Megatron's loop passes to its slot."""
    for slot, spec, kind in layer_specs(plan, model):
        for surface in surfaces:
            symbol = surface.of_slot(slot)
            if symbol is None:
                continue
            given = passed(model, symbol.keywords)
            who = f"megatron-core {surface.version} passes {', '.join(symbol.keywords)} to {slot}"
            try:
                if kind == "mixer":
                    # Upstream's layer hands its own keywords on, and the width.
                    given["d_model"] = model.config.hidden_size
                    build_module(spec.submodules.mixer, **given)
                else:
                    _built(spec, slot, model, symbol.keywords)
            except Exception as error:  # noqa: BLE001 - whatever a constructor raises
                rules.KEYWORDS.broken(f"{who}: {type(error).__name__}: {error}")
            carrier = plan.seams[0].manifest.carrier
            if carrier is None or not carrier.declares_keywords:
                continue
            missing = set(carrier.needs) - set(symbol.keywords)
            strange = set(symbol.keywords) - {*carrier.needs, *carrier.takes}
            if missing or strange:
                rules.KEYWORDS.broken(
                    f"{who}; [carrier] needs what is not passed: {sorted(missing) or 'nothing'}, "
                    f"and does not list: {sorted(strange) or 'nothing'}"
                )


def layer_specs(plan: Plan, model: "HybridModel") -> list[tuple[str, ModuleSpec, str]]:
    """The slot, the spec and the kind (``mixer`` or ``layer``) of the seam's layers."""
    loaded = load_plugins(plan.seams, plan.options)
    layers = SeamLayers.of_plan(plan, loaded, LocalBackend().provider)
    kinds = {provider.slot: kind_of(provider) for provider in plan.custom_layers().values()}
    specs = layers.specs(model.config, model.pg_collection)
    return [(slot, next(iter(of.values())), kinds[slot]) for slot, of in sorted(specs.items())]
