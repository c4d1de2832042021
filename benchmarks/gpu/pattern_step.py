"""A training step of NAM56R's order at hidden 2048, with each choice of its last block.

``python benchmarks/gpu/pattern_step.py [--rounds N]`` takes forward and backward passes in turns
of AEMEAEMEAEMR with R as M²RNN, as M and as A; with the n-gram embedding and an engram besides; and
with Mamba-3 in the place of M, without MIMO and as NAM56R has it. It prints each step's median,
what the block or feature in question takes of it, and where the time of the kernels goes. There is
no optimizer in a step.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from one_gpu import PLAIN, milliseconds, plan_of, seed, start, step, tokens, undisturbed
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

BATCH, LENGTH, VOCAB = 2, 4096, 32768
SIZES: Final = PLAIN | {
    "hidden_size": 2048,
    "ffn_hidden_size": 8192,
    "num_attention_heads": 16,
    "vocab_size": VOCAB,
    "max_sequence_length": LENGTH,
    "num_moe_experts": 16,
    "moe_router_topk": 4,
    "moe_ffn_hidden_size": 896,
    "moe_shared_expert_intermediate_size": 1024,
    "moe_router_dtype": "fp32",
    "moe_grouped_gemm": True,
}
ORDER: Final = "AEMEAEMEAEM"
NGRAM: Final = {"features": [{"family": "ngram"}]}
ENGRAM: Final = {"features": [{"family": "engram", "layers": [2]}]}
MAMBA3: Final = {"families": {"mamba": "mamba3"}}
MIMO: Final = MAMBA3 | {"seams": {"mamba3": {"groups": 8, "mimo-rank": 4}}}
LAST: Final = "decoder.layers.11"
#: What is measured: its name -> the last block, further tables of the recipe, and the module whose
#: part of the step is asked for.
VARIANTS: Final[dict[str, tuple[str, dict[str, Any], str]]] = {
    "R as M2RNN": ("R", {}, LAST),
    "R as M": ("M", {}, LAST),
    "R as A": ("A", {}, LAST),
    "R, n-gram": ("R", NGRAM, "embedding.ngram_hash"),
    "R, engram": ("R", ENGRAM, "decoder.layers.1.engram"),
    "R, M as Mamba-3": ("R", MAMBA3, "decoder.layers.2"),
    "R, M with MIMO": ("R", MIMO, "decoder.layers.2"),
}
#: Steps under the profiler.
PROFILED: Final = 3
#: What the names of kernels tell -> what they do; the first that fits.
KINDS: Final = {
    "m2rnn's recurrence": r"^m2rnn_",
    "mamba": r"_chunk_|_state_passing|_bmm_chunk|mamba3|mimo|_ssd|causal_conv1d|selective",
    "products": r"gemm|nvjet|cutlass|xmma|cublas|Kernel2|splitK",
    "softmax": r"softmax",
    "compiled elementwise": r"^triton_",
    "all around": r"",
}


@contextmanager
def watched(module: torch.nn.Module) -> Iterator[Callable[[], float]]:
    """Milliseconds on the device between a module's beginning and end, forward and backward.

    Its backward pass begins with the gradient of what it returned, and ends with the last of those
    of its inputs and weights.
    """
    forward = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    backward = torch.cuda.Event(enable_timing=True)
    ends: list[torch.cuda.Event] = []

    def end(_: object) -> None:
        ends.append(torch.cuda.Event(enable_timing=True))
        ends[-1].record()

    def enter(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ends.clear()
        for each in (*args, *kwargs.values()):
            if isinstance(each, torch.Tensor) and each.requires_grad:
                each.register_hook(end)
        forward[0].record()

    def leave(_: object, args: object, output: Any) -> None:
        del args
        forward[1].record()
        first = output[0] if isinstance(output, tuple) else output
        first.register_hook(lambda _: backward.record())

    hooks = [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave),
        *(weight.register_post_accumulate_grad_hook(end) for weight in module.parameters()),
    ]
    try:
        yield lambda: forward[0].elapsed_time(forward[1]) + max(map(backward.elapsed_time, ends))
    finally:
        for hook in hooks:
            hook.remove()


def kinds(work: Callable[[], None]) -> dict[str, float]:
    """Milliseconds of kernels of each kind in a step."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(PROFILED):
            work()
        torch.cuda.synchronize()
    spent = dict.fromkeys(KINDS, 0.0)
    for event in recorded.events():
        if event.device_type == DeviceType.CUDA:
            kind = next(k for k, pattern in KINDS.items() if re.search(pattern, event.name))
            spent[kind] += event.self_device_time_total / 1e3 / PROFILED
    return spent


def built(variant: str) -> torch.nn.Module:
    """The model of a variant."""
    from megatron_seams.runtime.model.build import build_model

    last, tables, _ = VARIANTS[variant]
    seed()
    model: torch.nn.Module = build_model(plan_of(ORDER + last, SIZES, **tables)).cuda()
    return model.train()


def main() -> int:
    """Measure every variant in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", nargs="*", default=tuple(VARIANTS), choices=tuple(VARIANTS))
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: no GPU")
        return 0
    start()
    ids, positions = tokens(BATCH, LENGTH, VOCAB)
    work: dict[str, Callable[[], None]] = {}
    parts: dict[str, torch.nn.Module] = {}
    for variant in asked.only:
        try:
            model = built(variant)
            for _ in range(3):
                step(model, ids, positions)
        except Exception as error:  # noqa: BLE001 - one variant that cannot run leaves the others
            print(f"{variant}: left out, {type(error).__name__}: {error}")
            continue
        work[variant] = lambda model=model: step(model, ids, positions)
        parts[variant] = model.get_submodule(VARIANTS[variant][2])
        size = sum(weight.numel() for weight in model.parameters()) / 1e6
        print(f"{variant}: {size:.0f} million parameters, built and warm", flush=True)
    times: dict[str, list[float]] = {variant: [] for variant in work}
    with undisturbed():
        for turn in range(asked.rounds):
            for variant in work if turn % 2 else reversed(work):
                times[variant].append(milliseconds(work[variant]))
    taken: dict[str, list[float]] = {variant: [] for variant in work}
    for variant, part in parts.items():
        with undisturbed(), watched(part) as between:
            for _ in range(9):
                torch.cuda._sleep(10_000_000)
                work[variant]()
                torch.cuda.synchronize()
                taken[variant].append(between())
    shares = {variant: kinds(each) for variant, each in work.items()}
    report(times, taken, shares)
    return 0


def report(
    times: dict[str, list[float]],
    taken: dict[str, list[float]],
    shares: dict[str, dict[str, float]],
) -> None:
    """Print the tables."""
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, {ORDER}R and its like")
    print(f"hidden 2048, B{BATCH} S{LENGTH}, bf16, unfused attention, forward and backward")
    print(f"\n{'kernels, ms of a step':24}" + "".join(f"{kind:>22}" for kind in KINDS))
    for variant, spent in shares.items():
        whole = sum(spent.values())
        cells = (f"{spent[kind]:.2f} ({spent[kind] / whole:.0%})" for kind in KINDS)
        print(f"{variant:24}" + "".join(f"{cell:>22}" for cell in cells))
    print(f"\n{'medians in ms':18}{'step':>9}{'quartiles':>20}{'to R':>8}   of it")
    base = statistics.median(next(iter(times.values())))
    for variant, each in times.items():
        median, part = statistics.median(each), statistics.median(taken[variant])
        low, _, high = statistics.quantiles(each, n=4)
        print(
            f"{variant:18}{median:9.2f}{low:10.2f}{high:10.2f}{median - base:+8.2f}"
            f"{part:8.2f} ({part / median:.1%}) {VARIANTS[variant][2]}"
        )


if __name__ == "__main__":
    sys.exit(main())
