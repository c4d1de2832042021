"""The authors' kernels: the reason where they cannot run, and their numbers on a GPU."""

import importlib.util
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from megatron_seams.errors import CannotRunHere
from megatron_seams_mamba3.ops import authors
from megatron_seams_mamba3.ops.contract import Inputs, Mimo, State
from megatron_seams_mamba3.ops.operator import default_chunk, mamba3

sys.path.append(str(Path(__file__).parent))

from authors_block import forward, mixer_alone, published  # beside this file, which is on no path

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


@pytest.fixture(autouse=True, scope="module")
def _one_configuration() -> Iterator[None]:
    """Take the first configuration of each of the authors' Triton kernels.

    They are alike in what they compute, and to build and time all of them takes many minutes.
    """
    if importlib.util.find_spec("triton") is None:
        yield
        return
    triton = importlib.import_module("triton")
    tuned = triton.autotune

    def first(configs: list[Any], key: list[str], **settings: Any) -> Any:
        usual = [config for config in configs if config.num_warps == 4] or configs
        return tuned(usual[:1], key, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "autotune", first)
        yield


def drawn(
    ranks: int | None, device: str, *, S: int = 256, B: int = 1, G: int = 1
) -> dict[str, Any]:
    """Inputs of a call, rounded to bfloat16, at the sizes that the kernels are made for."""
    H, P, N, R = 4, 64, 128, ranks or 1
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


@pytest.mark.parametrize(
    ("ranks", "change", "fault"),
    [
        (None, {}, None),
        (None, {"chunk": 8}, "a chunk's steps are a power of 2 there, 16 or more; found 8"),
        (4, {"chunk": 21}, "a chunk's steps are a power of 2 there, 8 or more; found 21"),
        (None, {"wide": True}, "round to bfloat16, and the inputs are torch.float64"),
        (4, {"documents": True}, None),
        (4, {"documents": True, "gate": False}, "no backward pass for packed rows without a gate"),
        (None, {"head": 48}, r"powers of 2 there, 16 or more; found \(48, 128\)"),
        (None, {"head": 8}, r"powers of 2 there, 16 or more; found \(8, 128\)"),
    ],
)
def test_what_the_kernels_do_not_take_is_said(
    monkeypatch: pytest.MonkeyPatch,
    ranks: int | None,
    change: dict[str, Any],
    fault: str | None,
) -> None:
    monkeypatch.setattr(authors.importlib.util, "find_spec", lambda _: object())  # has tilelang
    made = {"mimo": None, **drawn(ranks, "cpu", S=4)}
    made["x"] = made["x"][..., : change.get("head", 64)]
    if "wide" in change:
        made["x"] = made["x"].double()
    if not change.get("gate", True):
        made["z"] = None
    documents = torch.tensor([0, 1, 4], dtype=torch.int32) if "documents" in change else None
    chunk = change.get("chunk", default_chunk(ranks or 1))
    found = authors.inputs_fault(
        Inputs(**made, state=None, cu_seqlens=documents, chunk=chunk, keep=False)
    )
    assert (found is None) == (fault is None)
    assert fault is None or re.search(fault, found or "")


def test_the_chunk_is_the_authors_and_a_power_of_2() -> None:
    assert [default_chunk(ranks) for ranks in (1, 2, 3, 4, 5, 8, 16, 64, 100)] == [
        *(64, 32, 16, 16, 8, 8, 8, 8, 8)
    ]


@pytest.mark.parametrize("bounds", [None, (0, 3, 3, 9)], ids=["rows", "packed"])
def test_the_angle_that_is_kept_is_the_references_and_not_rounded(
    bounds: tuple[int, ...] | None,
) -> None:
    made = drawn(None, "cpu", S=9, B=1 if bounds else 2)
    made["cu_seqlens"] = None if bounds is None else torch.tensor(bounds, dtype=torch.int32)
    settings: dict[str, Any] = {"chunk": 8, "keep": True}
    _, once = mamba3(**made, backend="reference")
    assert once is not None
    found = authors.last_angle(Inputs(**made, **settings, mimo=None, state=None))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, once.angle.float(), atol=1e-5, rtol=0)
    _, twice = mamba3(**made, state=once, backend="reference")
    assert twice is not None
    found = authors.last_angle(Inputs(**made, **settings, mimo=None, state=once))
    torch.testing.assert_close(found, twice.angle.float(), atol=1e-5, rtol=0)


@on_a_gpu
@RANKS
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("groups", [1, 2], ids=["one group", "two groups"])
def test_the_kernels_are_the_reference_on_rounded_inputs(
    ranks: int | None, packed: bool, groups: int
) -> None:
    made = drawn(ranks, "cuda", B=1 if packed else 2, G=groups)
    bounds = torch.tensor(BOUNDS, dtype=torch.int32, device="cuda") if packed else None
    exact = {name: wide(value) for name, value in made.items()}
    found = outcome(made, cu_seqlens=bounds, backend="cuda")
    agree(found, outcome(exact, cu_seqlens=bounds, backend="reference"))
    # A forward pass that is computed again for its gradients is the first one.
    with torch.no_grad():
        first, _ = mamba3(**made, cu_seqlens=bounds, keep=False, backend="cuda")
    assert torch.equal(first, found["y"])


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


FORMS = pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="SISO"),
        pytest.param({"groups": 2, "out-norm": True, "rope-fraction": 1.0}, id="SISO, normalised"),
        pytest.param({"mimo-rank": 4, "groups": 2}, id="MIMO", marks=MIMO.marks),
        pytest.param({"mimo-rank": 4, "out-norm": True}, id="MIMO, normalised", marks=MIMO.marks),
    ],
)
#: With MIMO the authors' backward pass takes one group.
TRAINED = pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="SISO"),
        pytest.param({"groups": 2, "out-norm": True, "rope-fraction": 1.0}, id="SISO, normalised"),
        pytest.param({"mimo-rank": 4}, id="MIMO", marks=MIMO.marks),
        pytest.param({"mimo-rank": 4, "out-norm": True}, id="MIMO, normalised", marks=MIMO.marks),
    ],
)
WIDTH = 128


def own_module(options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The authors' module, its weights moved away from their beginning; its function of A."""
    module = importlib.import_module("mamba_ssm.modules.mamba3")
    torch.manual_seed(1)
    block = module.Mamba3(
        WIDTH,
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
    with torch.no_grad():
        for weight in block.parameters():
            weight += 0.1 * torch.randn_like(weight)
    # Releases to 2.3.2 have nothing of that name.
    heavy = hasattr(module, "heavy_tail_activation")
    return block, {"decay": "heavy-tail"} if heavy else {}


def tokens(*, rows: int, length: int) -> Tensor:
    """Inputs of a block, [rows, length, width]."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, length, WIDTH, generator=generator).bfloat16().cuda()


@on_a_gpu
@FORMS
def test_the_authors_own_module_is_the_block_of_its_weights(options: dict[str, Any]) -> None:
    block, tail = own_module(options)
    weights = {name: weight.detach().double() for name, weight in block.named_parameters()}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    assert shapes == published(WIDTH, N=128, P=64, **options)
    u = tokens(rows=2, length=128)
    with torch.no_grad():
        found = block(u)
        expected = forward(u.double(), weights, P=64, backend="reference", **options, **tail)
    agree({"y": found}, {"y": expected})


@on_a_gpu
@TRAINED
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_the_mixer_of_published_weights_is_the_authors_own_module(
    options: dict[str, Any], packed: bool
) -> None:
    pytest.importorskip("megatron.core")
    block, tail = own_module(options)
    # The authors have no such backward pass, and the mixer's choice is torch.
    trains = not (packed and "mimo-rank" in options and "out-norm" in options)
    chosen = {"backend": "cuda"} if trains else {}
    mixer = mixer_alone(dict(block.named_parameters()), **chosen, **options, **tail)
    u = tokens(rows=1 if packed else 2, length=256)
    bounds = torch.tensor(BOUNDS[:-1], dtype=torch.int32, device="cuda") if packed else None
    described: Any = None
    if packed:
        described = SimpleNamespace(
            cu_seqlens_q=bounds, cu_seqlens_q_padded=None, local_cp_size=None
        )
    expected = block(u, cu_seqlens=bounds)
    found, _ = mixer(u.transpose(0, 1).contiguous(), packed_seq_params=described)
    found = found.transpose(0, 1)
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(found.shape, generator=generator).bfloat16().cuda()
    if not trains:
        agree({"y": found.detach()}, {"y": expected.detach()})
        return
    outcomes = []
    for module, y in ((mixer, found), (block, expected)):
        names, leaves = zip(*module.named_parameters(), strict=True)
        gradients = torch.autograd.grad(y, leaves, weight)
        outcomes.append({"y": y.detach(), **dict(zip(names, gradients, strict=True))})
    agree(*outcomes)


@on_a_gpu
@FORMS
def test_the_mixer_decodes_what_it_computes_at_once(options: dict[str, Any]) -> None:
    pytest.importorskip("megatron.core")
    block, tail = own_module(options)
    weights = dict(block.named_parameters())
    # With MIMO the authors' kernels continue no sequence, and the mixer's choice is torch.
    mixer = mixer_alone(weights, **options, **tail)
    u = tokens(rows=2, length=104).transpose(0, 1).contiguous()
    context: Any = SimpleNamespace(
        key_value_memory_dict={},
        sequence_len_offset=0,
        batch_size_offset=0,
        max_batch_size=2,
        is_static_batching=lambda: True,
    )
    with torch.no_grad():
        expected, _ = mixer(u)
        pieces = []
        # A prompt that fills no chunk, and then token by token.
        for first, last in itertools.pairwise((0, 100, 101, 102, 103, 104)):
            context.sequence_len_offset = first
            pieces.append(mixer(u[first:last], inference_context=context)[0])
    agree({"y": torch.cat(pieces)[100:]}, {"y": expected[100:]})
