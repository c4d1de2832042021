"""The authors' block from its parameters, written once more: for the tests of this folder."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from megatron_seams_mamba3.layer.step import heavy_tail
from megatron_seams_mamba3.ops.contract import Mimo
from megatron_seams_mamba3.ops.operator import mamba3


def published(width: int, *, N: int, P: int, **options: Any) -> dict[str, tuple[int, ...]]:
    """The parameters of ``mamba_ssm`` 2.3.2's ``Mamba3``, as its source has them, expanded by 2.

    ``options`` are keys of ``[seams.mamba3]``.
    """
    heads, ranks, groups = 2 * width // P, options.get("mimo-rank", 1), options.get("groups", 1)
    angles = int(N * options.get("rope-fraction", 0.5)) // 2
    projected = 2 * heads * P + 2 * N * groups * ranks + 3 * heads + angles
    found: dict[str, tuple[int, ...]] = {
        "in_proj.weight": (projected, width),
        "dt_bias": (heads,),
        "B_bias": (heads, ranks, N),
        "C_bias": (heads, ranks, N),
        "B_norm.weight": (N,),
        "C_norm.weight": (N,),
        "D": (heads,),
        "out_proj.weight": (width, heads * P),
    }
    if "mimo-rank" in options:
        found |= dict.fromkeys(("mimo_x", "mimo_z", "mimo_o"), (heads, ranks, P))
    if options.get("out-norm"):
        found["norm.weight"] = (heads * P,)
    return found


def forward(u: Tensor, w: dict[str, Tensor], *, P: int, backend: str, **options: Any) -> Tensor:
    """The block over [b, s, width]; ``options`` are keys of ``[seams.mamba3]``."""
    ranks, groups = options.get("mimo-rank", 1), options.get("groups", 1)
    heads, N = len(w["D"]), len(w["B_norm.weight"])
    inner, group = heads * P, groups * N * ranks
    angles = w["in_proj.weight"].shape[0] - 2 * inner - 2 * group - 3 * heads
    parts = [inner, inner, group, group, heads, heads, heads, angles]
    z, x, B, C, dt, A, trap, angle = torch.split(u @ w["in_proj.weight"].T, parts, -1)
    dt = functional.softplus(dt + w["dt_bias"])
    positive = heavy_tail(A) if options.get("decay") == "heavy-tail" else functional.softplus(A)

    def normal(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight

    B, C = (y.reshape(*u.shape[:2], ranks, groups, N) for y in (B, C))
    z, x = (y.reshape(*u.shape[:2], heads, P) for y in (z, x))
    many = "mimo-rank" in options
    gated = not options.get("out-norm")
    y, _ = mamba3(
        x,
        normal(B, w["B_norm.weight"]),
        normal(C, w["C_norm.weight"]),
        log_decay=-positive.clamp(min=1e-4) * dt,
        dt=dt,
        trap=trap,
        angle=angle,
        B_bias=w["B_bias"],
        C_bias=w["C_bias"],
        D=w["D"],
        z=z if gated else None,
        mimo=Mimo(x=w["mimo_x"], z=w["mimo_z"], o=w["mimo_o"]) if many else None,
        keep=False,
        backend=backend,
    )
    if not gated:
        weight = w["norm.weight"].reshape(heads, P)
        if many:
            gate = functional.silu(torch.einsum("bshp,hrp->bsrhp", z, w["mimo_z"]))
            y = torch.einsum("bsrhp,hrp->bshp", normal(y, weight) * gate, w["mimo_o"])
        else:
            y = normal(y, weight) * functional.silu(z)
    return y.flatten(2) @ w["out_proj.weight"].T


class OneRank:
    """As much of a process group of one rank as a mixer reads."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


class Linear(nn.Linear):
    """A linear as upstream's: it is told more, and returns its bias beside its output."""

    def __init__(self, inputs: int, outputs: int, *, config: Any, **_: Any) -> None:
        super().__init__(inputs, outputs, bias=False, dtype=config.params_dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]  # as upstream's
        return super().forward(x), None


def mixer_alone(weights: dict[str, Tensor], **options: Any) -> Any:
    """The mixer of published weights, on their device, outside of any model and process group.

    ``options`` are keys of ``[seams.mamba3]``.
    """
    from megatron_seams.runtime.mixers import Projections
    from megatron_seams_mamba3.layer.mixer import Mamba3Mixer
    from megatron_seams_mamba3.layer.published import from_published
    from megatron_seams_mamba3.options import Options

    projected = weights["in_proj.weight"]
    config: Any = SimpleNamespace(
        use_cpu_initialization=True,
        params_dtype=projected.dtype,
        sequence_parallel=False,
        init_method=None,
        output_layer_init_method=None,
    )
    groups: Any = SimpleNamespace(tp=OneRank())
    mixer = Mamba3Mixer(
        config,
        Projections(in_proj=Linear, out_proj=Linear),
        Options(**{name.replace("-", "_"): value for name, value in options.items()}),
        d_model=projected.shape[1],
        layer_number=1,
        pg_collection=groups,
    )
    cut = from_published(weights, mixer.layout)
    for name, parameter in mixer.named_parameters():
        # The tensor itself: which of them are bfloat16 is the authors' too.
        parameter.data = cut.pop(name).detach().clone()
    assert not cut
    return mixer
