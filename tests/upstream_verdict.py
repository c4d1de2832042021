"""Upstream's own verdict on patterns and pipelines: run with a Megatron on the path.

``python upstream_verdict.py FILE`` reads a JSON list of cases (pattern, pipeline ranks, layers on
the first and on the last stage) and prints, for each, what upstream's pattern parser, its
``validate_args``, its configuration and its choice of each stage's layers say.
"""

import argparse
import contextlib
import copy
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

# 0.17 and 0.18 import it where they read configuration files, which nothing here does.
sys.modules.setdefault("yaml", MagicMock())

import torch  # noqa: E402
from megatron.training import arguments  # noqa: E402

try:
    from megatron.core.models.hybrid import hybrid_layer_allocation as allocation
except ImportError:  # its home before 0.18
    from megatron.core.ssm import mamba_hybrid_layer_allocation as allocation

#: What a run needs besides its layers; sizes of no meaning.
NEEDED = {
    "hidden-size": 64,
    "num-attention-heads": 4,
    "seq-length": 64,
    "max-position-embeddings": 64,
    "micro-batch-size": 1,
    "position-embedding-type": "none",
    "num-experts": 4,
}


def outcome(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """The result of a call, and its error as text."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return call(), None
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it is the verdict
            return None, f"{type(error).__name__}: {error}"


def verdict(parser: argparse.ArgumentParser, case: dict[str, Any]) -> dict[str, Any]:
    words = [f"--hybrid-layer-pattern={case['pattern']}", "--bf16", "--disable-bias-linear"]
    words += [f"--{name}={value}" for name, value in NEEDED.items()]
    words += [f"--pipeline-model-parallel-size={case['ranks']}"]
    for end in ("first", "last"):
        if case.get(end) is not None:
            words.append(f"--decoder-{end}-pipeline-num-layers={case[end]}")
    args = copy.copy(parser.parse_args(words))
    args._is_global_batch_size_explicitly_specified = False
    args.rank, args.world_size = 0, case["ranks"]
    parsed, parser_says = outcome(lambda: allocation.parse_hybrid_pattern(case["pattern"]))
    _, arguments_say = outcome(lambda: arguments.validate_args(args, {}))
    config = None
    if arguments_say is None:
        _, config = outcome(lambda: arguments.core_transformer_config_from_args(args))
    found = {"parser": parser_says, "arguments": arguments_say, "configuration": config}
    if parser_says is None and arguments_say is None:
        virtual = args.virtual_pipeline_model_parallel_size
        found |= {
            "layers": args.num_layers,
            "mtp_depths": args.mtp_num_layers or 0,
            "virtual": virtual or 1,
            "stages": stages(parsed.main_pattern or "", case, virtual),
        }
    return found


def stages(main: str, case: dict[str, Any], virtual: int | None) -> list[Any]:
    """For each stage in its order: the rank that has it, its first layer (from 0), its layers."""
    found = []
    group = object()
    for index in range(case["ranks"] * (virtual or 1)):
        rank, chunk = index % case["ranks"], index // case["ranks"]
        torch.distributed.get_rank = lambda *_, rank=rank: rank
        torch.distributed.get_world_size = lambda *_: case["ranks"]
        ends = {f"{end}_stage_layers": case.get(end) for end in ("first", "last")}
        allocation.log_on_each_pipeline_stage = lambda *_, **__: None
        chosen, error = outcome(
            lambda chunk=chunk, ends=ends: allocation.select_pipeline_segment(
                main, group, None if virtual is None else chunk, **ends
            )
        )
        found.append(error or [rank, chosen[1], "".join(chosen[0])])
    return found


def main() -> None:
    parser = arguments.add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    cases = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps([verdict(parser, case) for case in cases]))


if __name__ == "__main__":
    main()
