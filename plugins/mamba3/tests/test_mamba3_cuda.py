"""The authors' kernels: the reason where they cannot run, and their numbers on a GPU."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from megatron_seams.errors import CannotRunHere
from megatron_seams_mamba3.ops import authors
from megatron_seams_mamba3.ops.contract import Mimo, State
from megatron_seams_mamba3.ops.operator import mamba3

sys.path.append(str(Path(__file__).parent))

from authors_block import forward, published  # beside this file, which is on no path

on_a_gpu = pytest.mark.skipif(
    authors.device_fault(torch.device("cuda")) is not None or not torch.cuda.is_available(),
    reason="needs a GPU and mamba-ssm",
)
MIMO = pytest.param(
    4,
    id="MIMO",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("tilelang") is None, reason="needs the package tilelang"
    ),
)
RANKS = pytest.mark.parametrize("ranks", [pytest.param(None, id="SISO"), MIMO])
BOUNDS = (0, 70, 128, 256, 256)
#: Of a tensor's norm: bfloat16's rounding, through a few sums.
WITHIN = 0.02


def drawn(ranks: int | None, device: str, *, S: int = 256, B: int = 1) -> dict[str, Any]:
    """Inputs of a call, rounded to bfloat16, at the sizes that the kernels are made for."""
    H, P, G, N, R = 4, 64, 1, 128, ranks or 1
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16().to(device)

    dt = torch.nn.functional.softplus(normal(B, S, H).float() - 3)
    made: dict[str, Any] = {
        "x": normal(B, S, H, P),
        "B": normal(B, S, R, G, N),
        "C": normal(B, S, R, G, N),
        "log_decay": -dt * normal(B, S, H).float().abs(),
        "dt": dt,
        "trap": normal(B, S, H),
        "angle": normal(B, S, N // 4),
        "B_bias": normal(H, R, N).float(),
        "C_bias": normal(H, R, N).float(),
        "D": normal(H).float(),
        "z": normal(B, S, H, P),
    }
    if ranks is not None:
        made["mimo"] = Mimo(**{name: normal(H, R, P).float() / R for name in "xzo"})
    return made


def wide(value: Any) -> Any:
    """The same in float64."""
    if isinstance(value, Mimo | State):
        fields = attrs.asdict(value, recurse=False)
        return type(value)(**{name: part.double() for name, part in fields.items()})
    return value.double()


def tensors(made: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a call, those of its tables too."""
    found = {}
    for name, value in made.items():
        table = attrs.asdict(value, recurse=False) if attrs.has(type(value)) else {"": value}
        found |= {f"{name}.{part}".rstrip("."): tensor for part, tensor in table.items()}
    return found


def outcome(made: dict[str, Any], **settings: Any) -> dict[str, Tensor]:
    """Y, and every input's gradient for a fixed gradient of y."""
    leaves = tensors(made)
    for leaf in leaves.values():
        leaf.requires_grad_()
    y, _ = mamba3(**made, keep=False, **settings)
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(y.shape, generator=generator).bfloat16().to(y)
    found = torch.autograd.grad(y, list(leaves.values()), weight)
    return {"y": y.detach()} | {f"d{name}": x for name, x in zip(leaves, found, strict=True)}


def agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    errors = {
        name: ((found[name].double() - truth).norm() / truth.norm()).item()
        for name, truth in expected.items()
    }
    assert all(error <= WITHIN for error in errors.values()), errors


def test_where_they_cannot_run_the_reason_is_said() -> None:
    made = drawn(None, "cpu", S=4)
    with pytest.raises(CannotRunHere, match=r"SEAM-B05[\s\S]*compute on a GPU"):
        mamba3(**made, backend="cuda")


def test_without_the_package_or_with_an_old_one_the_reason_is_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(_: str) -> str:
        return "2.3.1"

    monkeypatch.setattr(authors.importlib.metadata, "version", version)
    found = authors.device_fault(torch.device("cuda"))
    assert found == "mamba-ssm is 2.3.1, and the kernels are those of 2.3.2 or later"

    def missing(name: str) -> str:
        raise authors.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(authors.importlib.metadata, "version", missing)
    assert authors.device_fault(torch.device("cuda")) == "the package mamba-ssm is not installed"


@on_a_gpu
@RANKS
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_the_kernels_are_the_reference_on_rounded_inputs(ranks: int | None, packed: bool) -> None:
    made = drawn(ranks, "cuda", B=1 if packed else 2)
    bounds = torch.tensor(BOUNDS, dtype=torch.int32, device="cuda") if packed else None
    exact = {name: wide(value) for name, value in made.items()}
    agree(
        outcome(made, cu_seqlens=bounds, backend="cuda"),
        outcome(exact, cu_seqlens=bounds, backend="reference"),
    )


@on_a_gpu
@RANKS
def test_the_last_states_continue_a_sequence(ranks: int | None) -> None:
    made = drawn(ranks, "cuda")
    steps = {name for name, value in made.items() if getattr(value, "ndim", 0) >= 3} - {
        "B_bias",
        "C_bias",
    }
    first, second = (
        {name: value[:, part] if name in steps else value for name, value in made.items()}
        for part in (slice(0, 128), slice(128, 256))
    )
    exact = {name: wide(value) for name, value in made.items()}
    expected, end = mamba3(**exact, backend="reference")
    y, state = mamba3(**first, backend="cuda")
    assert state is not None
    # With MIMO they continue no sequence, and torch does.
    more, last = mamba3(**second, state=state, backend=None if ranks else "cuda")
    assert last is not None
    assert end is not None
    agree({"y": torch.cat([y, more], dim=1)}, {"y": expected})
    found, truth = tensors({"state": last}), tensors({"state": end})
    for both in (found, truth):
        angle = both.pop("state.angle").double()
        both["state.angle"] = torch.stack([angle.cos(), angle.sin()])
    agree(found, truth)


@on_a_gpu
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="SISO"),
        pytest.param({"groups": 2, "out-norm": True, "rope-fraction": 1.0}, id="SISO, normalised"),
        pytest.param({"mimo-rank": 4, "groups": 2}, id="MIMO", marks=MIMO.marks),
        pytest.param({"mimo-rank": 4, "out-norm": True}, id="MIMO, normalised", marks=MIMO.marks),
    ],
)
def test_the_authors_own_module_is_the_block_of_its_weights(options: dict[str, Any]) -> None:
    module = importlib.import_module("mamba_ssm.modules.mamba3")
    # The function that the module in hand has: releases to 2.3.2 have none of that name.
    tail = {"decay": "heavy-tail"} if hasattr(module, "heavy_tail_activation") else {}
    width = 128
    block = module.Mamba3(
        width,
        d_state=128,
        headdim=64,
        ngroups=options.get("groups", 1),
        rope_fraction=options.get("rope-fraction", 0.5),
        is_outproj_norm=options.get("out-norm", False),
        is_mimo="mimo-rank" in options,
        mimo_rank=options.get("mimo-rank", 4),
        chunk_size=64 // options.get("mimo-rank", 1),
        device="cuda",
        dtype=torch.bfloat16,
    )
    weights = {name: weight.detach().double() for name, weight in block.named_parameters()}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    assert shapes == published(width, N=128, P=64, **options)
    u = torch.randn(2, 128, width, device="cuda").bfloat16()
    with torch.no_grad():
        found = block(u)
        expected = forward(u.double(), weights, P=64, backend="reference", **options, **tail)
    agree({"y": found}, {"y": expected})
