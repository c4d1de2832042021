"""The numbers of both backends, against a complex recurrence and against each other."""

import itertools
import math
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from megatron_seams_mamba3.ops.contract import Mimo, State
from megatron_seams_mamba3.ops.operator import mamba3

TOLERANCE = 1e-10
#: Rows, steps, heads, channels of a head, groups, state.
SIZES = {"B": 2, "S": 11, "H": 4, "P": 3, "G": 2, "N": 8}
#: Ranks, None without MIMO, and angles: half of the channels turn, or all.
FORMS = [(None, 2), (None, 4), (3, 2), (1, 4)]
BOUNDS = (0, 3, 3, 8, 11)


def draw(ranks: int | None, angles: int, *, gate: bool = True, **sizes: int) -> dict[str, Tensor]:
    """Random inputs in float64, by the operator's names; the projections as ``mimo.x`` …"""
    size = SIZES | sizes
    B, S, H, P, G, N = (size[letter] for letter in "BSHPGN")
    R = ranks or 1
    generator = torch.Generator().manual_seed(B + S + R + angles)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    drawn = {
        "x": normal(B, S, H, P),
        "B": normal(B, S, R, G, N),
        "C": normal(B, S, R, G, N),
        "log_decay": -normal(B, S, H).abs(),
        "dt": normal(B, S, H).abs(),
        "trap": normal(B, S, H),
        "angle": normal(B, S, angles),
        "B_bias": normal(H, R, N),
        "C_bias": normal(H, R, N),
        "D": normal(H),
    }
    if gate:
        drawn["z"] = normal(B, S, H, P)
    if ranks is not None:
        drawn |= {f"mimo.{name}": normal(H, R, P) for name in "xzo"}
    return drawn


def with_state(drawn: dict[str, Tensor], sequences: int) -> dict[str, Tensor]:
    """Add what the sequences continue."""
    H, P = drawn["x"].shape[2:]
    R, N = drawn["B_bias"].shape[1:]
    shapes = {"angle": (drawn["angle"].shape[-1],), "h": (P, N), "b": (R, N), "x": (P,)}
    generator = torch.Generator().manual_seed(7)
    given = {
        f"state.{name}": torch.rand(sequences, H, *shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    return drawn | given


def call(drawn: dict[str, Tensor], **settings: Any) -> dict[str, Tensor]:
    """Run the operator: y, and the last state with its angle as a point on the circle."""
    plain = {name: value for name, value in drawn.items() if "." not in name}
    tables: dict[str, Any] = {}
    for prefix, table in (("mimo", Mimo), ("state", State)):
        found = {name.split(".")[1]: x for name, x in drawn.items() if name.startswith(prefix)}
        tables[prefix] = table(**found) if found else None
    y, last = mamba3(**plain, **tables, **settings)
    if last is None:
        return {"y": y}
    return {"y": y} | on_the_circle(last)


def on_the_circle(last: State) -> dict[str, Tensor]:
    """Name a state's tensors; an angle of 0 is one of 2π."""
    point = torch.stack([last.angle.cos(), last.angle.sin()])
    return attrs.asdict(attrs.evolve(last, angle=point), recurse=False)


def differentiated(drawn: dict[str, Tensor], **settings: Any) -> dict[str, Tensor]:
    """Outputs, and the gradients of every input for fixed gradients of all outputs."""
    leaves = {name: value.clone().requires_grad_() for name, value in drawn.items()}
    outputs = call(leaves, **settings)
    generator = torch.Generator().manual_seed(5)
    weights = [
        torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in outputs.values()
    ]
    found = torch.autograd.grad(list(outputs.values()), list(leaves.values()), weights)
    gradients = {f"d{name}": x for name, x in zip(leaves, found, strict=True)}
    return {name: value.detach() for name, value in outputs.items()} | gradients


def agree(found: dict[str, Tensor], expected: dict[str, Tensor], within: float = TOLERANCE) -> None:
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        assert found[name].shape == truth.shape, name
        error = (found[name] - truth).abs().max().item()
        assert error <= within * max(1.0, truth.abs().max().item()), f"{name} is off by {error:.3g}"


def by_complex_numbers(drawn: dict[str, Tensor]) -> Tensor:
    """Y of rows that begin at zero, with a complex state that itself turns: no rotary, no sums.

    Each pair of channels is one complex number; the transition is α e^(-i turn), and the real part
    of the state times the conjugate of c is read.
    """
    ranks = drawn["B"].shape[2]
    mimo = "mimo.x" in drawn
    rows, steps, heads, P = drawn["x"].shape
    group = heads // drawn["B"].shape[3]

    def pairs(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1) if mimo else (x[..., 0::2], x[..., 1::2])
        return torch.complex(first, second)

    y = torch.zeros(rows, steps, heads, P, dtype=torch.float64)
    for row, head in itertools.product(range(rows), range(heads)):
        g = torch.zeros(P, drawn["B"].shape[-1] // 2, dtype=torch.complex128)
        before = torch.zeros_like(g)
        for t in range(steps):
            dt, lam = drawn["dt"][row, t, head], drawn["trap"][row, t, head].sigmoid()
            turn = torch.zeros(g.shape[1], dtype=torch.float64)
            turn[: drawn["angle"].shape[-1]] = math.pi * drawn["angle"][row, t].tanh() * dt
            transition = drawn["log_decay"][row, t, head].exp() * torch.exp(-1j * turn)
            entering = torch.zeros_like(g)
            for r in range(ranks):
                u = drawn["x"][row, t, head] * (drawn["mimo.x"][head, r] if mimo else 1)
                b = pairs(drawn["B"][row, t, r, head // group] + drawn["B_bias"][head, r])
                entering += torch.outer(u.to(b.dtype), b)
            g = transition * (g + (1 - lam) * dt * before) + lam * dt * entering
            before = entering
            for r in range(ranks):
                u = drawn["x"][row, t, head] * (drawn["mimo.x"][head, r] if mimo else 1)
                c = pairs(drawn["C"][row, t, r, head // group] + drawn["C_bias"][head, r])
                out = (g @ c.conj()).real + drawn["D"][head] * u
                gate = drawn["z"][row, t, head] * (drawn["mimo.z"][head, r] if mimo else 1)
                out = out * gate * gate.sigmoid()
                y[row, t, head] += out * (drawn["mimo.o"][head, r] if mimo else 1)
    return y


@pytest.mark.parametrize(("ranks", "angles"), FORMS)
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_turning_state_is_a_complex_one(ranks: int | None, angles: int, backend: str) -> None:
    drawn = draw(ranks, angles)
    found = call(drawn, backend=backend, keep=False, chunk=4)
    agree(found, {"y": by_complex_numbers(drawn)})


@pytest.mark.parametrize(("ranks", "angles"), FORMS)
@pytest.mark.parametrize("chunk", [1, 4, 11, 64])
def test_torch_is_the_reference_with_every_gradient(
    ranks: int | None, angles: int, chunk: int
) -> None:
    drawn = with_state(draw(ranks, angles), SIZES["B"])
    agree(
        differentiated(drawn, backend="torch", chunk=chunk),
        differentiated(drawn, backend="reference"),
    )


@pytest.mark.parametrize(("ranks", "angles"), FORMS)
@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("chunk", [2, 64])
def test_packed_documents_are_rows_of_their_own(
    ranks: int | None, angles: int, resumed: bool, chunk: int
) -> None:
    drawn = draw(ranks, angles, B=1)
    if resumed:
        drawn = with_state(drawn, len(BOUNDS) - 1)
    given = {"cu_seqlens": torch.tensor(BOUNDS, dtype=torch.int32)}
    found = differentiated(drawn, backend="torch", chunk=chunk, **given)
    expected = differentiated(drawn, backend="reference", **given)
    agree(found, expected)
    for document, (start, stop) in enumerate(itertools.pairwise(BOUNDS)):
        if start == stop:
            continue
        alone = {
            name: x[:, start:stop]
            if name in {"x", "B", "C", "log_decay", "dt", "trap", "angle", "z"}
            else x[document : document + 1]
            if name.startswith("state")
            else x
            for name, x in drawn.items()
        }
        y = call(alone, backend="reference")["y"]
        torch.testing.assert_close(expected["y"][:, start:stop], y, atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("ranks", [None, 3])
@pytest.mark.parametrize("pieces", [[1] * 11, [5, 1, 5], [4, 7]])
def test_a_sequence_in_pieces_is_the_whole_one(
    backend: str, ranks: int | None, pieces: list[int]
) -> None:
    drawn = draw(ranks, 2)
    steps = {"x", "B", "C", "log_decay", "dt", "trap", "angle", "z"}
    mimo = Mimo(**{n: drawn[f"mimo.{n}"] for n in "xzo"}) if ranks else None
    state, outputs, begin = None, [], 0
    for size in pieces:
        piece = {n: x[:, begin : begin + size] if n in steps else x for n, x in drawn.items()}
        plain = {name: x for name, x in piece.items() if "." not in name}
        y, state = mamba3(**plain, mimo=mimo, state=state, backend=backend, chunk=3)
        outputs.append(y)
        begin += size
    assert state is not None
    found = {"y": torch.cat(outputs, dim=1)} | on_the_circle(state)
    agree(found, call(drawn, backend="reference"))


def test_without_a_gate_the_ranks_come_one_by_one() -> None:
    for ranks, shape in ((None, (2, 11, 4, 3)), (3, (2, 11, 3, 4, 3))):
        drawn = draw(ranks, 2, gate=False)
        found = call(drawn, backend="torch")
        assert found["y"].shape == shape
        agree(found, call(drawn, backend="reference"))


@pytest.mark.parametrize("ranks", [None, 2])
def test_the_gradients_are_those_of_finite_differences(ranks: int | None) -> None:
    drawn = with_state(draw(ranks, 1, B=1, S=3, H=2, P=2, G=1, N=4), 1)
    names = list(drawn)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(call(dict(zip(names, values, strict=True)), backend="torch", chunk=2).values())

    leaves = [value.requires_grad_() for value in drawn.values()]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("ranks", [None, 3])
def test_not_even_a_nan_crosses_a_boundary(backend: str, ranks: int | None) -> None:
    drawn = draw(ranks, 2, B=1)
    given = {"cu_seqlens": torch.tensor(BOUNDS), "backend": backend, "keep": False, "chunk": 4}
    for name in ("x", "B", "dt", "trap", "angle"):
        changed = dict(drawn)
        changed[name] = drawn[name].clone()
        changed[name][:, 3:8] = float("nan")
        before, found = call(drawn, **given)["y"], call(changed, **given)["y"]
        assert torch.equal(found[:, :3], before[:, :3]), name
        assert torch.equal(found[:, 8:], before[:, 8:]), name
        assert found[:, 3:8].isnan().any()


@pytest.mark.parametrize("ranks", [None, 3])
def test_in_16_bits_the_state_is_float32(ranks: int | None) -> None:
    drawn = draw(ranks, 2)
    short = {n: x.bfloat16() if n in {"x", "B", "C", "z"} else x.float() for n, x in drawn.items()}
    found = call(short, backend="torch")
    assert found["y"].dtype == torch.bfloat16
    assert found["h"].dtype == torch.float32
    exact = call({name: x.double() for name, x in short.items()}, backend="reference")
    assert (found["h"] - exact["h"]).abs().max() <= 1e-5 * exact["h"].abs().max()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"B": (2, 11, 1, 3, 8)}, ValueError, "expected shapes that fit"),
        ({"B": (2, 11, 2, 2, 8), "C": (2, 11, 2, 2, 8)}, ValueError, "expected shapes that fit"),
        ({"angle": (2, 11, 5)}, ValueError, "turn in pairs"),
        ({"x": (2, 11, 4)}, ValueError, r"expected x \[B, S, H, P\]"),
        ({"D": (3,)}, ValueError, "expected shapes that fit"),
    ],
)
def test_what_does_not_fit_is_refused(
    changed: dict[str, tuple[int, ...]], error: type[Exception], message: str
) -> None:
    drawn = draw(None, 2) | {
        name: torch.ones(shape, dtype=torch.float64) for name, shape in changed.items()
    }
    with pytest.raises(error, match=message):
        call(drawn)


def test_settings_and_dtypes_that_mean_nothing_are_refused() -> None:
    drawn = draw(None, 2)
    with pytest.raises(ValueError, match="chunk counts steps"):
        call(drawn, chunk=0)
    with pytest.raises(TypeError, match="sums of 16-bit steps drift"):
        call(drawn | {"dt": drawn["dt"].bfloat16()})
    with pytest.raises(TypeError, match="share one dtype"):
        call(drawn | {"B": drawn["B"].float()})
    with pytest.raises(ValueError, match="packed row comes alone"):
        call(drawn, cu_seqlens=torch.tensor([0, 11]))
    with pytest.raises(ValueError, match="rise from 0"):
        call(draw(None, 2, B=1), cu_seqlens=torch.tensor([0, 9]))
    with pytest.raises(ValueError, match="need the projections"):
        call({name: x for name, x in draw(2, 2).items() if "." not in name})
    with pytest.raises(ValueError, match="backend is one of"):
        call(drawn, backend="triton")
