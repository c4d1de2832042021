"""One recipe's model by both roads, compared: run with a Megatron on the path.

``python both_roads.py [--drop FLAG]... RECIPE...`` builds each model twice: by ``build_model``, and
by upstream's own parser, checks, configuration and builder from the arguments that the registry
prints. It prints one JSON object for each: how many keys and configuration fields were compared,
and what differs, or what stops the trainer's road. With ``--drop`` there is one object for each
flag that is not passed on.

Where Transformer Engine and a GPU are, everything is upstream's. Elsewhere both roads take the
same stand-ins for what needs them: the TE-free layers, kernels that are never called, and answers
to questions about a CUDA device. Tensors have shapes and no memory, so sizes are the recipe's own.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.machinery
import importlib.util
import io
import itertools
import json
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

#: What a run by the arguments needs besides; none of it is part of the model.
RUN = ("--micro-batch-size", "1", "--seq-length", "8")
#: For a recipe that leaves its sizes out.
SIZES = {
    "hidden_size": 256,
    "num_attention_heads": 8,
    "vocab_size": 1024,
    "max_sequence_length": 128,
}
#: More experts than these are the same experts again.
MOST_EXPERTS = 8
#: Where the stack of a receipt asks for this machine's backend.
TRAINER = "megatron_seams.runtime.trainer.stack"
#: Fields that are the run's and not the model's, and why.
OF_THE_RUN = {"inference_sampling_seed": "the trainer takes its --seed"}


def stand_in_kernels() -> None:
    """Put modules of the names of CUDA packages where upstream imports them from."""

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a kernel was called")

    def module(name: str, **names: Any) -> None:
        made = types.ModuleType(name)
        made.__spec__ = importlib.machinery.ModuleSpec(name, None)
        made.__path__ = []
        vars(made).update(names)
        sys.modules.setdefault(name, made)

    from torch import nn

    class GatedNorm(nn.Module):
        def __init__(self, size: int, *_: Any, device: Any = None, dtype: Any = None, **__: Any):
            import torch

            super().__init__()
            self.weight = nn.Parameter(torch.ones(size, device=device, dtype=dtype))

    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        module(name)
    # 0.17 and 0.18 import it where they read configuration files.
    sys.modules.setdefault("yaml", mock.MagicMock())
    module("einops", rearrange=never, repeat=never)
    module("causal_conv1d", causal_conv1d_fn=never, causal_conv1d_update=never)
    triton = "mamba_ssm.ops.triton"
    module(f"{triton}.layernorm_gated", RMSNorm=GatedNorm)
    module(f"{triton}.selective_state_update", selective_state_update=never)
    combined = ("mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined")
    module(f"{triton}.ssd_combined", **dict.fromkeys(combined, never))


def stand_in_backend() -> Any:
    """The TE-free backend with upstream's Mamba layer, and no word on the configuration."""
    from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
    from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
    from megatron.core.ssm.mamba_mixer import MambaMixer, MambaMixerSubmodules
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.spec_utils import ModuleSpec

    from megatron_seams.runtime.backends.local import LocalBackend
    from megatron_seams.runtime.backends.norm import LocalNorm

    mixer = ModuleSpec(
        module=MambaMixer,
        submodules=MambaMixerSubmodules(in_proj=ColumnParallelLinear, out_proj=RowParallelLinear),
    )
    layer = ModuleSpec(
        module=MambaLayer,
        submodules=MambaLayerSubmodules(
            norm=LocalNorm, mixer=mixer, mamba_bda=get_bias_dropout_add
        ),
    )

    class StandIn(LocalBackend):
        def why_not(self, family: str) -> str | None:
            return None if family in ("mamba", "dsa") else super().why_not(family)

        def settings(self) -> dict[str, Any]:
            return {}

        def submodules(self, config: Any) -> Any:
            return dataclasses.replace(super().submodules(config), mamba_layer=layer)

    return StandIn()


@contextlib.contextmanager
def without_cuda() -> Iterator[None]:
    """Shapes without memory, one process's groups, and a device that upstream may ask about."""
    from megatron.core.transformer.moe import moe_layer
    from torch._subclasses.fake_tensor import FakeTensorMode

    from megatron_seams.runtime.backends.duplicated_linear import DuplicatedLinear
    from megatron_seams.runtime.cpu.world import cpu_world

    device = types.SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    with (
        # Upstream's experts of a latent width take Transformer Engine's linear, and no other.
        mock.patch.multiple(moe_layer, HAVE_TE=True, TELinear=DuplicatedLinear),
        mock.patch("torch.cuda.Stream"),
        mock.patch("torch.cuda.get_device_capability", return_value=(9, 0)),
        mock.patch("torch.cuda.get_device_properties", return_value=device),
        FakeTensorMode(allow_non_fake_inputs=True),
        cpu_world(),
    ):
        yield


def compared(file: Path, folder: Path, backend: Any, drop: str | None) -> dict[str, Any]:
    """The models of the two roads for one recipe."""
    import attrs

    from megatron_seams.errors import Refusal
    from megatron_seams.planning.arguments import native_arguments
    from megatron_seams.planning.environment import read_environment
    from megatron_seams.planning.resolver import resolve
    from megatron_seams.recipes.recipe import load_recipe
    from megatron_seams.records.receipt import make_receipt
    from megatron_seams.runtime.model.build import build_model

    recipe, environment = load_recipe(file), read_environment()
    written = recipe.megatron
    sizes = SIZES | written
    if "num_moe_experts" in written:
        sizes["num_moe_experts"] = min(written["num_moe_experts"], MOST_EXPERTS)
        sizes["moe_router_topk"] = min(written.get("moe_router_topk", 2), MOST_EXPERTS)
    recipe = attrs.evolve(recipe, megatron=sizes)
    row: dict[str, Any] = {
        "recipe": recipe.model.name,
        "megatron": str(environment.surface.version),
        "changed": sorted(key for key in sizes if written.get(key) != sizes[key]),
    }
    try:
        plan = resolve(recipe, environment)
        groups = native_arguments(plan, environment.settings()).groups
    except Refusal as refusal:
        return row | {"refused": [f"{r.code} {r.asked}: {r.found}" for r in refusal.reasons]}
    receipt = folder / "receipt.json"
    receipt.write_text(make_receipt(plan, recipe))
    ours = build_model(plan, backend=backend)
    words = [word for group in groups if group[0] != drop for word in group]
    try:
        theirs = trainers_model((*words, *RUN), receipt)
    except Refusal as refusal:
        return row | {"differences": [f"stopped: {r.asked}; {r.found}" for r in refusal.reasons]}
    return row | {
        "parameters": sum(p.numel() for p in ours.parameters()),
        "keys": len(shapes(ours)),
        "fields": len(dataclasses.fields(ours.config)),
        "differences": [
            *differences("key", shapes(ours), shapes(theirs)),
            *differences("field", fields(ours.config), fields(theirs.config)),
        ],
    }


def trainers_model(words: tuple[str, ...], receipt: Path) -> Any:
    """The model that upstream's parser, checks and builder make of a command line."""
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training import arguments

    os.environ["MEGATRON_SEAMS_RECEIPT"] = str(receipt)
    sys.modules.pop("megatron_seams.runtime.launch", None)  # it reads the receipt when imported
    output = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["pretrain.py", *words]),
        contextlib.redirect_stdout(output),
    ):
        args = arguments.parse_args()
        arguments.validate_args(args)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    try:
        from megatron.training.argument_utils import (
            core_transformer_config_from_args,
            hybrid_config_from_args,
        )
        from megatron.training.models.hybrid import HybridModelBuilder
    except ImportError:
        return scripts_model(args, groups)
    config = hybrid_config_from_args(args, core_transformer_config_from_args(args))
    return HybridModelBuilder(config).build_model(groups)


def scripts_model(args: Any, groups: Any) -> Any:
    """The model as the script of a release builds it whose package has no builder of its own."""
    from megatron.core.models.mamba import MambaModel
    from megatron.core.transformer.spec_utils import import_module
    from megatron.training.arguments import core_transformer_config_from_args

    config = core_transformer_config_from_args(args)
    return MambaModel(
        config=config,
        mamba_stack_spec=import_module(args.spec),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        hybrid_layer_pattern=args.hybrid_layer_pattern,
        fp16_lm_cross_entropy=args.fp16_lm_cross_entropy,
        parallel_output=True,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        pg_collection=groups,
    )


def shapes(model: Any) -> dict[str, Any]:
    """Key of the state dictionary -> shape and type."""
    state = model.state_dict()
    return {
        key: f"{tuple(value.shape)} {value.dtype}" if hasattr(value, "shape") else "no tensor"
        for key, value in state.items()
    }


def fields(config: Any) -> dict[str, Any]:
    """Field of a configuration -> its value in a form that can be compared."""
    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def plain(value: Any) -> Any:
    """A value in a form in which equal functions are equal."""
    if isinstance(value, functools.partial):
        return plain(value.func), value.args, sorted(value.keywords.items())
    if isinstance(value, types.FunctionType):
        cells = [plain(cell.cell_contents) for cell in value.__closure__ or ()]
        return value.__module__, value.__qualname__, cells
    if isinstance(value, list | tuple):
        return type(value).__name__, [plain(part) for part in value]
    return value


def differences(
    what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[dict[str, str]]:
    """Each name that only one side has, or that the sides have differently."""
    for name in dict.fromkeys((*ours, *theirs)):
        one, other = ours.get(name, "missing"), theirs.get(name, "missing")
        untouched = one is False and other is None  # a switch without a default in the parser
        if one != other and not untouched and name not in OF_THE_RUN:
            yield {what: name, "build_model": repr(one), "trainer": repr(other)}


def main() -> None:
    """Print a JSON object for each recipe of the command line."""
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("--drop", action="append")
    parser.add_argument("recipes", nargs="+", type=Path)
    given = parser.parse_args()
    real = torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None
    if not real:
        stand_in_kernels()
    backend = None if real else stand_in_backend()
    world: Callable[[], Any] = one_gpu if real else without_cuda
    chosen = contextlib.nullcontext() if real else replaced_backend(backend)
    with tempfile.TemporaryDirectory() as folder, chosen:
        for file, drop in itertools.product(given.recipes, given.drop or [None]):
            with world():
                row = compared(file, Path(folder), backend, drop)
            print(json.dumps(row | ({"dropped": drop} if drop else {})), flush=True)


@contextlib.contextmanager
def replaced_backend(backend: Any) -> Iterator[None]:
    """The stand-in for whoever asks for this machine's backend."""
    with mock.patch(f"{TRAINER}.choose_backend", return_value=backend):
        yield


@contextlib.contextmanager
def one_gpu() -> Iterator[None]:
    """One process's groups over NCCL."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    torch.cuda.set_device(0)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("nccl", store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1234)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
