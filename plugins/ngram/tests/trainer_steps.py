"""Upstream's own setup, step, save and load with tables on either place, on a CPU.

``python trainer_steps.py FOLDER`` prints as JSON what each run had. Only what upstream asks of a
GPU is replaced; the model, its wrappers, optimizer, schedule and checkpoints are upstream's, built
from the arguments that ``registry args`` prints.
"""

import contextlib
import datetime
import functools
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import both_roads  # noqa: E402  # the repository's stand-ins for what needs a GPU

both_roads.stand_in_kernels()

import torch  # noqa: E402
from plugins.ngram.tests.host_runs import (  # noqa: E402
    TypesOfCuda,
    clipped,
    loading_torchs_adam,
    table_of,
)
from torch import Tensor, nn  # noqa: E402

from megatron_seams.base.structure import structure  # noqa: E402
from megatron_seams.errors import FeatureInvalid, Refusal  # noqa: E402
from megatron_seams.planning import environment  # noqa: E402
from megatron_seams.planning.arguments import native_arguments  # noqa: E402
from megatron_seams.planning.environment import read_environment  # noqa: E402
from megatron_seams.planning.resolver import resolve  # noqa: E402
from megatron_seams.recipes.recipe import Recipe  # noqa: E402
from megatron_seams.records.accept import Acceptance, accept  # noqa: E402
from megatron_seams.records.receipt import make_receipt  # noqa: E402
from megatron_seams.runtime.cpu.world import cpu_world  # noqa: E402

STEPS, HALF, LENGTH, VOCABULARY = 4, 2, 16, 64
ADDED = f"""
    --micro-batch-size 2 --global-batch-size 4 --seq-length {LENGTH} --train-iters 100 --lr 1e-2
    --lr-decay-style constant --eval-iters 0 --eval-interval 1000 --save-interval 1000
    --weight-decay 0.0 --clip-grad 0.05 --no-gradient-accumulation-fusion --no-load-rng
    --no-save-rng --use-cpu-initialization --use-distributed-optimizer
    --dist-ckpt-optim-fully-reshardable --log-num-zeros-in-grad
""".split()
#: The arguments that tables on the host are compared with, and those that the comparison reads.
COMPARED = (
    *("optimizer_cuda_graph", "use_megatron_fsdp", "use_torch_fsdp2", "async_save", "ckpt_format"),
    *("non_persistent_ckpt_type", "save", "no_save_optim", "decoupled_lr"),
)


@contextlib.contextmanager
def on_a_cpu(words: list[str]) -> Iterator[Any]:
    """Upstream's process groups and global state for a command line; yields the groups."""
    from megatron.core.num_microbatches_calculator import unset_num_microbatches_calculator
    from megatron.core.optimizer import optimizer
    from megatron.core.rerun_state_machine import (
        RerunMode,
        destroy_rerun_state_machine,
        initialize_rerun_state_machine,
    )
    from megatron.training import arguments, checkpointing, global_vars

    device = mock.MagicMock(major=9, minor=0, multi_processor_count=132)
    in_place_of = {
        "Stream": mock.MagicMock(),
        "stream": lambda _: contextlib.nullcontext(),
        "current_stream": mock.MagicMock(),
        "empty_cache": lambda: None,
        "get_rng_state": torch.get_rng_state,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: device,
    }
    kept = {name: None for name in vars(global_vars) if name.startswith("_GLOBAL_")}
    backend = both_roads.stand_in_backend()
    with (
        cpu_world() as groups,
        mock.patch.multiple(torch.cuda, **in_place_of),
        mock.patch.multiple(global_vars, **kept),
        mock.patch.object(checkpointing, "_CHECKPOINT_VERSION", None),
        mock.patch.object(nn.Module, "cuda", lambda self, *_: self),
        mock.patch.object(optimizer, "clip_grad_by_total_norm_fp32", clipped),
        mock.patch.object(sys, "argv", ["pretrain.py", *words]),
        both_roads.replaced_backend(backend),
    ):
        args = arguments.parse_args()
        arguments.validate_args(args)
        unset_num_microbatches_calculator()
        global_vars.set_global_variables(args, build_tokenizer=False)
        destroy_rerun_state_machine()
        initialize_rerun_state_machine(mode=RerunMode.DISABLED)
        yield groups


def load_with_torchs_adam(load: Any) -> Any:
    """Upstream's load, for which torch's Adam stands in for Transformer Engine's."""

    def loaded(model: Any, optimizer: Any, *args: Any, **keywords: Any) -> Any:
        from megatron.training.checkpointing import checkpoint_exists
        from megatron.training.global_vars import get_args

        if checkpoint_exists(get_args().load):
            for one in optimizer.chained_optimizers:
                one._init_optimizer_states_with_dummy_values()
        with loading_torchs_adam():
            found = load(model, optimizer, *args, **keywords)
        for one in optimizer.chained_optimizers:
            for state in one.optimizer.state.values():
                state["step"] = state["step"].clone()  # one tensor, which each would count up
        return found

    return loaded


def batches(first: int) -> Iterator[Tensor]:
    while True:
        generator = torch.Generator().manual_seed(first)
        yield torch.randint(VOCABULARY, (2, LENGTH), generator=generator)
        first += 1


def forward_step(data: Iterator[Tensor], model: Any) -> Any:
    ids = next(data)
    output = model(ids, torch.arange(LENGTH).expand(2, -1), None, labels=ids)

    def loss_of(output: Tensor) -> Any:
        loss = output.float().mean()
        return loss, {"lm loss": loss.detach().clone().view(1)}

    return output, loss_of


@functools.cache
def recipe_of(place: str) -> Recipe:
    table = table_of(place, bf16=True)
    table["megatron"] |= {"gradient_accumulation_fusion": False}
    recipe, faults = structure(Recipe, table)
    assert recipe is not None, faults
    return recipe


@functools.cache
def words_of(place: str) -> tuple[str, ...]:
    here = read_environment()
    groups = native_arguments(resolve(recipe_of(place), here), here.settings()).groups
    return tuple(word for group in groups for word in group)


def run(place: str, receipt: Path, *further: str, save: bool = False) -> dict[str, Any]:
    """Train to :data:`STEPS`, from a checkpoint where the folder has one.

    Args:
        place: Of the tables.
        receipt: The model's receipt.
        *further: More arguments.
        save: Whether to save at :data:`HALF`.
    """
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.enums import ModelType
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.training import argument_utils, checkpointing, training
    from megatron.training.global_vars import get_args

    os.environ["MEGATRON_SEAMS_RECEIPT"] = str(receipt)
    sys.modules.pop("megatron_seams.runtime.launch", None)  # it reads the receipt when imported
    with on_a_cpu([*words_of(place), *ADDED, *further]) as process_groups:
        args = get_args()
        transformer = argument_utils.core_transformer_config_from_args(args)
        of_model = argument_utils.hybrid_config_from_args(args, transformer)
        whole = argument_utils.pretrain_cfg_container_from_args(args, of_model)
        load = load_with_torchs_adam(training.load_checkpoint)
        with TypesOfCuda(), mock.patch.object(training, "load_checkpoint", load):
            model, optimizer, schedule = training.setup_model_and_optimizer(
                ModelType.encoder_or_decoder, cfg_container=whole, pg_collection=process_groups
            )
        config = training.get_model_config(model[0])
        config.grad_scale_func = optimizer.scale_loss
        config.finalize_model_grads_func = finalize_model_grads
        data, schedules = batches(2 * args.iteration), get_forward_backward_func()
        started, steps = args.iteration, []
        for step in range(started, STEPS):
            args.curr_iteration = step
            losses, *_, norm, _, _ = training.train_step(
                *(forward_step, data, model, optimizer, schedule, config, schedules),
                iteration=step,
            )
            steps.append([float(losses["lm loss"]), float(norm)])
            if save and step + 1 == HALF:
                checkpointing.save_checkpoint(
                    *(HALF, model, optimizer, schedule, 0),
                    preprocess_common_state_dict_fn=training.preprocess_common_state_dict,
                )
        bare = training.unwrap_model(model)[0]
        tables = [bare.embedding.ngram_hash.tables, bare.decoder.layers[0].engram.tables]
        return {
            "started": started,
            "steps": steps,
            "rows": [float(one.weight.detach().double().square().sum()) for one in tables],
            "named": [name for name in COMPARED if hasattr(args, name)],
        }


def main() -> None:
    """Run resident tables, tables on the host, the latter resumed, and one from the other's."""
    folder = Path(sys.argv[1])
    # Each run would read the installed Megatron's source again, which takes a second.
    for name in ("importable_megatron", "read_surface"):
        setattr(environment, name, functools.cache(getattr(environment, name)))
    here = read_environment()
    receipts = {place: folder / f"{place}.json" for place in ("device", "host", "moved")}
    found: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for place in ("device", "host"):
            recipe = recipe_of(place)
            receipts[place].write_text(make_receipt(resolve(recipe, here), recipe))
            saved = str(folder / place)
            found[place] = run(place, receipts[place], "--save", saved, "--load", saved, save=True)
        host = recipe_of("host")
        shutil.copyfile(receipts["device"], receipts["moved"])
        why = Acceptance(by="the tests", reason="tables on the host", when=datetime.date.today())
        load = ("--load", str(folder / "device"))
        try:
            run("host", receipts["host"], *load)
        except Refusal as refusal:
            found["moved without a word"] = [one.code for one in refusal.reasons]
        accept(receipts["moved"], here, why, recipe=host)
        found["moved"] = run("host", receipts["moved"], *load)
        found["resumed"] = run("host", receipts["host"], "--load", str(folder / "host"))
        for option in (
            ("--ckpt-format", "torch"),
            ("--async-save", "--use-persistent-ckpt-worker"),
        ):
            asked = ("--save", str(folder / "never"), *option)
            try:
                found[option[0]] = run("host", receipts["host"], *asked)
            except FeatureInvalid as refusal:
                found[option[0]] = refusal.code
    print(json.dumps(found))


if __name__ == "__main__":  # the processes that save import it again
    main()
