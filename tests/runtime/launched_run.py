"""The program of test_launch.py: upstream's own loader and builder around a receipt's stack."""

import copy
import json
import os
import pickle
import sys
from pathlib import Path

import torch
from megatron.core.transformer.spec_utils import import_module

from megatron_seams.errors import Refusal
from megatron_seams.runtime import compat
from megatron_seams.runtime.cpu.world import cpu_world
from megatron_seams.runtime.model.build import build_model
from megatron_seams.runtime.model.refused import StackRefused, refusal_behind
from megatron_seams.runtime.model.settings import model_settings

SPEC = ("megatron_seams.runtime.launch", "stack_spec")


def load(receipt):
    """Upstream's result for --spec, with that receipt."""
    for name in (SPEC[0], "megatron_seams.runtime.trainer.stack"):
        sys.modules.pop(name, None)
    if receipt is None:
        os.environ.pop("MEGATRON_SEAMS_RECEIPT", None)
    else:
        os.environ["MEGATRON_SEAMS_RECEIPT"] = str(receipt)
    try:
        return import_module(SPEC)
    except Exception as error:  # noqa: BLE001  # which error it is, is the question
        kind = "an ImportError" if isinstance(error, ImportError) else type(error).__name__
        return f"{kind}: {error}"


def build(spec, pattern, groups, arguments=None, **changes):
    """Upstream's model as its trainer builds it: from its own configuration and pattern."""
    prepared = spec.params["prepared"]
    plan, backend = prepared.plan, prepared.backend
    chosen = model_settings(plan, plan.megatron, backend.settings())
    for name, value in changes.items():
        setattr(chosen.config, name, value)
    return compat.build_hybrid_model(
        chosen.config,
        spec,
        hybrid_layer_pattern=pattern,
        pg_collection=groups,
        **{**chosen.arguments, **(arguments or {})},
    )


def built_by_upstream(spec, groups):
    """The layers of the model that upstream's own builder makes; None where it cannot be loaded."""
    try:
        from megatron.training.models.hybrid import HybridModelBuilder, HybridModelConfig
    except ImportError:  # a release without it, or one whose trainer wants further packages
        return None
    prepared = spec.params["prepared"]
    plan, backend = prepared.plan, prepared.backend
    chosen = model_settings(plan, plan.megatron, backend.settings())
    asked = HybridModelConfig(
        transformer=chosen.config,
        hybrid_stack_spec=spec,
        hybrid_layer_pattern="*M*M",
        seq_length=32,
        vocab_size=64,
    )
    model = HybridModelBuilder(asked).build_model(groups)
    return sorted(model.state_dict())


def refused(spec, pattern, groups, **changes):
    try:
        build(spec, pattern, groups, **changes)
    except (StackRefused, Refusal) as error:
        # The reasons stand once in the traceback: upstream's own words around them have the codes.
        return "\n".join([str(refusal_behind(error)), str(error)])
    return "built"


def held_native(spec, groups):
    """The refusals of a plan of native layers alone, whose embeddings rotate."""
    found = {
        name: refused(spec, "*-*-", groups, arguments=arguments)
        for name, arguments in {
            "other positions": {"position_embedding_type": "none"},
            "another rotary base": {"rotary_base": 10000},
            "rotated in part": {"rotary_percent": 0.5},
            "positions interpolated": {"seq_len_interpolation_factor": 2.0},
            "native, tied": {"share_embeddings_and_output_weights": True},
        }.items()
    }
    found["native, another size"] = refused(spec, "*-*-", groups, hidden_size=64)
    prepared = spec.params["prepared"]
    found["native keys"] = sorted(build(spec, "*-*-", groups).state_dict())
    found["upstream's keys"] = sorted(
        build_model(prepared.plan, backend=prepared.backend, pg_collection=groups).state_dict()
    )
    return found


def trained(model):
    ids = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(8).expand(2, -1)
    model(ids, positions, None, labels=ids).mean().backward()
    return sorted(name for name, weight in model.named_parameters() if weight.grad is None)


def build_from_copy(pickled):
    """Build from a spec that another process wrote; its keys go beside it."""
    spec = pickle.loads(pickled.read_bytes())  # noqa: S301  # written by this test
    with cpu_world() as groups:
        model = build(copy.deepcopy(spec), "*M*M", groups)
        pickled.with_suffix(".keys").write_text(json.dumps(sorted(model.state_dict())))


def main():
    if len(sys.argv) == 2:
        build_from_copy(Path(sys.argv[1]))
        return
    folder, receipt, missing_module = (Path(argument) for argument in sys.argv[1:])
    found = {
        "unset": load(None),
        "edited": load(folder / "edited.json"),
        "another plan": load(folder / "other.json"),
        "a version that is held": load(folder / "versions.json"),
        "a plugin without its module": load(missing_module),
    }
    sys.modules["megatron_seams.runtime.trainer.stack"] = (
        None  # the next import of it is an ImportError
    )
    try:
        import_module(SPEC)
    except RuntimeError as error:
        found["import error"] = str(error)
    with cpu_world() as groups:
        spec = load(receipt)
        (folder / "spec.pickle").write_bytes(pickle.dumps(spec))
        launch = sys.modules[SPEC[0]]
        found["by its factory"] = launch.hybrid_stack_spec(None) is spec
        model = build(spec, "*M*M", groups)
        found["layers"] = [type(layer).__name__ for layer in model.decoder.layers]
        found["mixers"] = [
            type(layer.mixer).__name__ for layer in model.decoder.layers if hasattr(layer, "mixer")
        ]
        found["keys"] = sorted(model.state_dict())
        found["without gradient"] = trained(model)
        found["hooks left"] = len(
            torch.nn.modules.module._global_module_registration_hooks  # none may stay behind
        )
        found["keys by upstream's builder"] = built_by_upstream(spec, groups)
        found["moved"] = refused(spec, "M*M*", groups)
        found["shorter"] = refused(spec, "*M", groups, num_layers=2)
        found["other norms"] = refused(spec, "*M*M", groups, qk_layernorm=True)
        found["another stage"] = refused(spec, "*M|*M", groups)
        found["another MTP"] = refused(spec, "*M*M/*", groups, mtp_num_layers=1)
        found["another size"] = refused(spec, "*M*M", groups, hidden_size=64)
        found["other pipeline ranks"] = refused(
            spec, "*M*M", groups, pipeline_model_parallel_size=2
        )
        for name, arguments in {
            "tied embeddings": {"share_embeddings_and_output_weights": True},
            "another vocabulary": {"vocab_size": 128},
        }.items():
            found[name] = refused(spec, "*M*M", groups, arguments=arguments)
        found |= held_native(load(folder / "native.json"), groups)
        found["hooks left at the end"] = len(
            torch.nn.modules.module._global_module_registration_hooks
        )
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
