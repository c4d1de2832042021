"""A training step of one layer with the M²RNN mixer at hidden size 2048, and its parts."""

import re
import statistics
from collections.abc import Callable

import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

HIDDEN, BATCH, STEPS = 2048, 2, 4096
#: What the names of kernels tell -> what they do; the first that fits.
KINDS = {
    "recurrence": r"^m2rnn_|^(forward|backward)$",
    "products": r"gemm|nvjet|cutlass|xmma|cublas",
    "all around": r"",
}


def lines(rounds: int) -> list[str]:
    """The table's lines: the step's time by backend, compiled and as a graph, and its kinds.

    A line says so where Megatron-Core is not installed.
    """
    try:
        from megatron_seams.runtime.cpu.world import gloo_world
    except ImportError as missing:
        return [f"layer: left out, {missing}"]
    with gloo_world() as groups:
        return _measured(groups, rounds)


def timed(work: Callable[[], object]) -> float:
    """Milliseconds on the device from the first kernel of ``work`` to the end of its last.

    It is behind a kernel that idles while the host launches: a model's host is ahead of its device
    likewise. Products in its place would heat the card, whose clock falls by a tenth and more.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(30_000_000)  # cycles: 16 ms
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _measured(groups: object, rounds: int) -> list[str]:
    x = torch.randn(STEPS, BATCH, HIDDEN, device="cuda").bfloat16().requires_grad_()
    dy = torch.randn_like(x)
    steps: dict[str, Callable[[], object]] = {}
    for backend in ("triton", "cuda"):
        built = layer(groups, backend)
        steps[backend] = eager = step(built, x, dy)
        if backend == "cuda":
            steps["cuda, graph"] = graph(eager)
            steps["cuda, compiled"] = step(torch.compile(built), x, dy)
    for work in steps.values():
        for _ in range(3):
            work()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, work in steps.items():
            taken[name].append(timed(work))
    heading = f"layer, hidden {HIDDEN} B{BATCH} S{STEPS}"
    found = [f"{heading:34}{'fwd+bwd':>8}  of the kernels' time: {', '.join(KINDS)}"]
    for name, work in steps.items():
        spent = kinds(work)
        total = sum(spent.values())
        shares = "  ".join(f"{spent[kind]:6.2f} ({spent[kind] / total:4.0%})" for kind in KINDS)
        found.append(f"{name:34}{statistics.median(taken[name]):8.3f}  {shares}")
    return found


def layer(groups: object, backend: str, device: str = "cuda") -> nn.Module:
    """Upstream's ``MambaLayer`` with the mixer in it, in bfloat16."""
    from inspect import signature

    from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
    from megatron.core.models.backends import LocalSpecProvider
    from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
    from megatron.core.transformer.spec_utils import ModuleSpec, build_module
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_seams.hookspecs import LayerContext
    from megatron_seams_m2rnn.options import Options
    from megatron_seams_m2rnn.plugin import recurrent_layer

    config = TransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=16,
        normalization="RMSNorm",
        hidden_dropout=0.0,
        bf16=True,
        params_dtype=torch.bfloat16,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
    )
    context = LayerContext(
        config=config,
        options=Options(backend=backend),
        megatron_version=Version("0.19.2"),
        backend=LocalSpecProvider(),
        pg_collection=groups,
        slot="mamba_layer",
        layer_numbers=(1,),
    )
    submodules = MambaLayerSubmodules(
        norm=WrappedTorchNorm, mixer=recurrent_layer(context), mamba_bda=get_bias_dropout_add
    )
    named = (
        {"name": "decoder.layers.0"} if "name" in signature(MambaLayer.__init__).parameters else {}
    )
    built: nn.Module = build_module(
        ModuleSpec(module=MambaLayer, submodules=submodules),
        config=config,
        layer_number=1,
        pg_collection=groups,
        pp_layer_offset=0,
        **named,
    )
    # As upstream's wrapper for 16 bits does.
    return built.bfloat16().to(device)


def step(built: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], object]:
    """A forward and backward pass: the gradients of the layer's input and of all its weights."""
    wanted = [x, *built.parameters()]
    return lambda: torch.autograd.grad(built(x), wanted, dy)


def graph(eager: Callable[[], object]) -> Callable[[], object]:
    """The same step, captured once in a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        eager()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        eager()
    return captured.replay


def kinds(work: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of kernels of each kind in one step."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        work()
        torch.cuda.synchronize()
    spent = dict.fromkeys(KINDS, 0.0)
    for event in recorded.events():
        if event.device_type == DeviceType.CUDA:
            kind = next(k for k, pattern in KINDS.items() if re.search(pattern, event.name))
            spent[kind] += event.self_device_time_total / 1e3
    return spent
