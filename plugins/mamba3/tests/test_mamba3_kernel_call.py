"""The arguments of the authors' kernels: on a CPU, by a stand-in with their restrictions."""

import sys
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from megatron_seams_mamba3.ops import authors
from megatron_seams_mamba3.ops.contract import Inputs, Mimo
from megatron_seams_mamba3.ops.operator import mamba3

H, P, N, R, S = 4, 8, 8, 2, 10
#: The authors' modules that build kernels.
PARTS = ("fwd", "bwd", "fwd_varlen", "bwd_varlen")
#: What the last call of the stand-in got.
SEEN: dict[str, int] = {}


def plain(x: Tensor) -> bool:
    """Whether all strides are those of a new tensor, as TileLang's kernels insist."""
    return x.stride() == torch.empty(x.shape, device="meta").stride()


class Strict(torch.autograd.Function):
    """Lets through a gradient that the kernels take."""

    @staticmethod
    def forward(_: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        assert plain(gradients[0]), gradients[0].stride()
        return gradients[0]


def mamba3_mimo(**given: Any) -> Any:
    """Their function with MIMO, computed by the reference."""
    for name, value in given.items():
        assert not isinstance(value, Tensor) or plain(value), (name, value.stride())
    heads, groups = given["V"].shape[2], given["K"].shape[3]
    SEEN["groups"] = groups
    assert groups in (1, heads) or not torch.is_grad_enabled(), "no backward pass"
    assert given["rotary_dim_divisor"] in (2, 4)
    steps = {name: given[name].transpose(1, 2) for name in ("ADT", "DT", "Trap")}
    out = given["MIMO_Out"]
    y, last = mamba3(
        given["V"],
        given["K"],
        given["Q"],
        log_decay=steps["ADT"],
        dt=steps["DT"],
        trap=steps["Trap"],
        angle=given["Angles"][:, :, 0],
        B_bias=given["K_bias"],
        C_bias=given["Q_bias"],
        D=given["D"],
        z=given["Z"],
        mimo=Mimo(
            x=given["MIMO_V"],
            z=given["MIMO_Z"],
            o=torch.zeros_like(given["MIMO_Z"]) if out is None else out,
        ),
        cu_seqlens=given["cu_seqlens"],
        keep=given["return_state"],
        backend="reference",
    )
    y = Strict.apply(y)
    if last is None:
        return y
    return y, last.angle, last.h, last.b.transpose(1, 2), last.x


@pytest.fixture(autouse=True)
def _stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "mamba_ssm.ops.tilelang.mamba3.mamba3_mimo"
    # No packages are looked for above a module that is there.
    parts = name.split(".")
    above = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    for each in (*above, *(f"{name}_{part}" for part in PARTS)):
        module: Any = SimpleNamespace(mamba3_mimo=mamba3_mimo, __path__=[])
        monkeypatch.setitem(sys.modules, each, module)


def call(groups: int, *, rows: int, gated: bool, bounds: tuple[int, ...] | None) -> Inputs:
    """A call whose tensors are the first steps of longer ones, and so lie as no new tensor does."""
    generator = torch.Generator().manual_seed(groups)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def cut(*shape: int) -> Tensor:
        x = normal(rows, 2 * S, *shape)[:, :S]
        assert not plain(x)
        return x.requires_grad_()

    return Inputs(
        x=cut(H, P),
        B=cut(R, groups, N),
        C=cut(R, groups, N),
        log_decay=-cut(H).abs(),
        dt=cut(H).abs() / 4,
        trap=cut(H),
        angle=cut(N // 4),
        B_bias=normal(H, R, N).requires_grad_(),
        C_bias=normal(H, R, N).requires_grad_(),
        D=normal(H).requires_grad_(),
        z=cut(H, P) if gated else None,
        mimo=Mimo(**{name: normal(H, R, P).requires_grad_() for name in "xzo"}),
        state=None,
        cu_seqlens=None if bounds is None else torch.tensor(bounds, dtype=torch.int32),
        chunk=8,
        keep=False,
    )


def leaves(of: Inputs) -> list[Tensor]:
    assert of.mimo is not None
    found = [of.x, of.B, of.C, of.trap, of.angle, of.B_bias, of.C_bias, of.D, of.mimo.x]
    return found if of.z is None else [*found, of.z, of.mimo.z, of.mimo.o]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "normalised"])
def test_the_kernels_with_mimo_get_what_they_take_and_so_do_their_gradients(
    groups: int, rows: int, gated: bool
) -> None:
    bounds = (0, 3, 10, 10) if rows == 1 else None
    of = call(groups, rows=rows, gated=gated, bounds=bounds)
    found, state = authors.recurrence(of)
    assert state is None
    expected, _ = mamba3(**given_of(of), keep=False, backend="reference")
    torch.testing.assert_close(found, expected)
    # As the mixer's output projection gives it back: [s, b, channels], and s and b exchanged.
    given = torch.randn(S, rows, found[0, 0].numel()).transpose(0, 1).view(found.shape)
    one, other = (torch.autograd.grad(y, leaves(of), given) for y in (found, expected))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("recorded", [True, False], ids=["trains", "decodes"])
def test_groups_are_repeated_only_where_a_gradient_may_come(recorded: bool) -> None:
    of = attrs.evolve(call(2, rows=1, gated=True, bounds=None), keep=True)
    with torch.set_grad_enabled(recorded):
        found, last = authors.recurrence(of)
        expected, end = mamba3(**given_of(of), backend="reference", keep=True)
    assert SEEN["groups"] == (H if recorded else 2)
    torch.testing.assert_close(found, expected)
    assert last is not None
    assert end is not None
    for name in ("angle", "h", "b", "x"):
        torch.testing.assert_close(getattr(last, name), getattr(end, name))


def test_a_kernel_is_built_once_whatever_the_variables_of_its_sizes_are() -> None:
    traced: list[tuple[Any, ...]] = []

    def mamba_mimo_fwd(*sizes: Any, **settings: Any) -> str:
        traced.append((*sizes, settings))
        return f"kernel {len(traced)}"

    module: Any = sys.modules["mamba_ssm.ops.tilelang.mamba3.mamba3_mimo_fwd"]
    module.mamba_mimo_fwd = mamba_mimo_fwd
    of = call(1, rows=2, gated=True, bounds=None)
    authors.recurrence(of)
    authors.recurrence(of)

    def build(*, steps: Any = None, state: int = 128, gated: Any = True, chunk: int = 16) -> str:
        # Each call has variables of its own, as the authors' have.
        batch, steps = SimpleNamespace(name="B"), steps or SimpleNamespace(name="S")
        found: str = module.mamba_mimo_fwd(batch, steps, state, gated, chunk_size=chunk)
        return found

    assert [build() for _ in range(3)] == ["kernel 1"] * 3
    others = [{"state": 64}, {"gated": 1}, {"chunk": 8}, {"steps": 4096}, {"steps": 2048}]
    assert [build(**other) for other in others] == [f"kernel {n}" for n in range(2, 7)]
    assert build(steps=4096) == "kernel 5"
    assert len(traced) == 6


def given_of(of: Inputs) -> dict[str, Any]:
    """The arguments of the operator."""
    names = ("x", "B", "C", "log_decay", "dt", "trap", "angle", "B_bias", "C_bias", "D")
    return {name: getattr(of, name) for name in (*names, "z", "mimo", "cu_seqlens", "chunk")}
