"""The mixer on one rank: the authors' parameters, and its forward written once more from them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megatron_seams.planning.environment import read_environment
from megatron_seams.runtime.cpu.world import cpu_world
from megatron_seams.runtime.model.build import build_model
from megatron_seams_mamba3.layer.published import from_published
from megatron_seams_mamba3.layer.step import heavy_tail, initial_dt_bias
from megatron_seams_mamba3.ops.contract import Mimo
from megatron_seams_mamba3.ops.operator import mamba3
from seam_support import plan, recipe

pytestmark = [pytest.mark.megatron, pytest.mark.release]

WIDTH = 16
SIZES = {"state-size": 8, "head-dim": 8, "groups": 2}
FORMS: dict[str, dict[str, Any]] = {
    "SISO": {},
    "SISO, normalised": {"out-norm": True, "decay": "heavy-tail", "rope-fraction": 1.0},
    "MIMO": {"mimo-rank": 3},
    "MIMO, normalised": {"mimo-rank": 3, "out-norm": True},
}


@pytest.fixture(scope="module", autouse=True)
def _world() -> Iterator[None]:
    with cpu_world():
        yield


def built(**options: Any) -> Any:
    """The mixer of a model with one layer, its weights moved away from their beginning."""
    asked = recipe(
        "K",
        tokens={"K": "mamba3"},
        megatron={
            "vocab_size": 16,
            "max_sequence_length": 16,
            "hidden_size": WIDTH,
            "num_attention_heads": 2,
        },
        seams={"mamba3": SIZES | options},
    )
    mixer = build_model(plan(asked, read_environment())).decoder.layers[0].mixer
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return mixer


def published(heads: int, ranks: int, **options: Any) -> dict[str, tuple[int, ...]]:
    """The parameters of ``mamba_ssm`` 2.3.2's ``Mamba3``, as its source has them."""
    N, P, groups = 8, 8, 2
    angles = 4 if options.get("rope-fraction") == 1.0 else 2
    projected = 2 * heads * P + 2 * N * groups * ranks + 3 * heads + angles
    found: dict[str, tuple[int, ...]] = {
        "in_proj.weight": (projected, WIDTH),
        "dt_bias": (heads,),
        "B_bias": (heads, ranks, N),
        "C_bias": (heads, ranks, N),
        "B_norm.weight": (N,),
        "C_norm.weight": (N,),
        "D": (heads,),
        "out_proj.weight": (WIDTH, heads * P),
    }
    if "mimo-rank" in options:
        found |= dict.fromkeys(("mimo_x", "mimo_z", "mimo_o"), (heads, ranks, P))
    if options.get("out-norm"):
        found["norm.weight"] = (heads * P,)
    return found


def forward(u: Tensor, w: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    """The authors' block over [b, s, width], from their parameters."""
    ranks, heads, P, N = options.get("mimo-rank", 1), len(w["D"]), 8, 8
    inner, group = heads * P, 2 * N * ranks
    angles = w["in_proj.weight"].shape[0] - 2 * inner - 2 * group - 3 * heads
    parts = [inner, inner, group, group, heads, heads, heads, angles]
    z, x, B, C, dt, A, trap, angle = torch.split(u @ w["in_proj.weight"].T, parts, -1)
    dt = functional.softplus(dt + w["dt_bias"])
    positive = heavy_tail(A) if options.get("decay") == "heavy-tail" else functional.softplus(A)

    def normal(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight

    B, C = (y.reshape(*u.shape[:2], ranks, 2, N) for y in (B, C))
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
        backend="reference",
    )
    if not gated:
        weight = w["norm.weight"].reshape(heads, P)
        if many:
            gate = functional.silu(torch.einsum("bshp,hrp->bsrhp", z, w["mimo_z"]))
            y = torch.einsum("bsrhp,hrp->bshp", normal(y, weight) * gate, w["mimo_o"])
        else:
            y = normal(y, weight) * functional.silu(z)
    return y.flatten(2) @ w["out_proj.weight"].T


@pytest.mark.parametrize("form", FORMS)
def test_the_parameters_are_the_authors_and_so_is_the_output(form: str) -> None:
    options = FORMS[form]
    mixer = built(**options)
    weights = dict(mixer.named_parameters())
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    assert shapes == published(4, options.get("mimo-rank", 1), **options)
    u = torch.randn(7, 2, WIDTH)
    out, bias = mixer(u)
    assert bias is None
    expected = forward(u.transpose(0, 1), weights, options).transpose(0, 1)
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-5)


def test_published_weights_load_on_one_rank_and_are_cut_for_two() -> None:
    mixer = built(**FORMS["MIMO, normalised"])
    weights = {name: torch.randn_like(weight) for name, weight in mixer.named_parameters()}
    loaded = mixer.load_state_dict(from_published(weights, mixer.layout), strict=False)
    assert not loaded.unexpected_keys
    assert all("_extra_state" in key for key in loaded.missing_keys)
    assert all(torch.equal(x, weights[name]) for name, x in mixer.named_parameters())
    two = mixer.options.layout(WIDTH, tp=2)
    halves = [from_published(weights, two, rank=rank) for rank in range(2)]
    for name, whole in weights.items():
        first, second = (half[name] for half in halves)
        if name in ("B_norm.weight", "C_norm.weight"):
            assert torch.equal(first, whole)
        elif name == "out_proj.weight":
            assert torch.equal(torch.cat([first, second], dim=1), whole)
        elif name != "in_proj.weight":
            assert torch.equal(torch.cat([first, second]), whole)
    # z of the first half of the heads, and then x of them.
    assert torch.equal(
        halves[0]["in_proj.weight"][:32], weights["in_proj.weight"][[*range(16), *range(32, 48)]]
    )


def test_weights_of_another_mixer_are_refused_by_name_and_shape() -> None:
    layout = built().layout
    weights = {name: torch.zeros(shape) for name, shape in published(4, 1).items()}
    weights["conv1d.weight"], weights["D"] = torch.zeros(4), torch.zeros(5)
    del weights["dt_bias"]
    with pytest.raises(ValueError, match=r"D: found \(5,\).*conv1d.*dt_bias: found None"):
        from_published(weights, layout)


def test_the_first_steps_are_those_that_were_asked_for() -> None:
    steps = functional.softplus(initial_dt_bias(1000, "cpu"))
    assert steps.min() >= 0.999e-3
    assert steps.max() <= 0.1001
    assert torch.allclose(heavy_tail(torch.tensor([-1.0, 0.0, 2.0])), torch.tensor([0.5, 1.0, 3.0]))
