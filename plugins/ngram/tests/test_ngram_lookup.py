"""Looking rows up: every backend gives torch's bits, and gradients go where they belong.

Under Triton's interpreter, which a process is in or is not, the backend is that one
(``test_ngram_triton.py`` runs it so).
"""

import os
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from megatron_seams.errors import CannotRunHere
from megatron_seams.runtime.extensions import NotBuilt, SlowBackend
from megatron_seams_ngram.ngram_tables import NgramTables
from megatron_seams_ngram.ops import cpu_kernels, torch_kernels
from megatron_seams_ngram.ops.dispatch import Kernels, choose
from megatron_seams_ngram.ops.indices import Constants
from megatron_seams_ngram.ops.lookup import look_up, look_up_ngrams
from megatron_seams_ngram.tables.hash_tables import make_tables

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NAMES = ("triton",) if INTERPRETED else ("cpu", "torch")
CPU = torch.device("cpu")
ROWS, WIDTH, TABLES = 120, 5, 3
#: Tokens of a row: the interpreter takes milliseconds for each line of a program.
LENGTH = 16 if INTERPRETED else 50


def indices(seed: int = 0, *shape: int) -> Tensor:
    """Rows of three tables of forty, with repeats: every sum then has an order."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(40, (*(shape or (2, LENGTH)), TABLES), generator=generator)
    return found + 40 * torch.arange(TABLES)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_the_cpp_has_the_indices_of_torch_where_there_are_enough_for_several_threads() -> None:
    constants = Constants.of(
        make_tables(orders=(2, 3), heads=12, table_rows=1_000, seed=3), pad_id=70_000
    )
    ids = torch.randint(70_000, (2, 11_001), generator=torch.Generator().manual_seed(0))
    starts = (torch.arange(11_001) // 777 * 777).expand(2, -1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = [one.hash_indices(ids, starts, constants) for one in (cpu_kernels, torch_kernels)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("sequence_first", [False, True])
@pytest.mark.parametrize("documents", [None, 7, (7, 11)])
def test_hashing_and_looking_up_at_once_is_doing_both(
    worker: Kernels, documents: int | tuple[int, ...] | None, sequence_first: bool
) -> None:
    made = make_tables(orders=(2, 3), heads=2, table_rows=29, seed=3)
    constants = Constants.of(made, pad_id=70_000)
    ids = torch.randint(70_000, (2, 33), generator=torch.Generator().manual_seed(0))
    starts = None
    if documents is not None:
        lengths = torch.tensor(documents).reshape(-1, 1)  # of both rows, or each row its own
        starts = torch.arange(33) // lengths * lengths
    table = normal(sum(made.primes) - 20, WIDTH)
    rows, at = worker.hash_and_gather(
        ids, starts, constants, table, 11, sequence_first=sequence_first
    )
    expected = torch_kernels.hash_indices(ids, starts, constants)
    assert torch.equal(at, expected)
    assert torch.equal(worker.hash_indices(ids, starts, constants), expected)
    assert torch.equal(rows, torch_kernels.gather(table, expected, 11))
    assert torch.equal(worker.gather(table, expected, 11), rows)


@given(
    first=st.integers(0, ROWS),
    rows=st.integers(1, ROWS),
    threads=st.integers(1, 5),
    types=st.sampled_from(
        [
            (torch.float32, torch.float32),
            (torch.bfloat16, torch.float32),
            (torch.float64, torch.float64),
            (torch.bfloat16, torch.bfloat16),
        ]
    ),
)
@settings(max_examples=3 if INTERPRETED else 60, deadline=None)
def test_the_bits_are_torchs_for_any_part_type_and_number_of_threads(
    first: int, rows: int, threads: int, types: tuple[torch.dtype, torch.dtype]
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        at = indices()
        table = normal(rows, WIDTH, dtype=types[0])
        own = choose(NAMES[0], CPU)
        looked_up = [one.gather(table, at, first) for one in (own, torch_kernels)]
        assert torch.equal(*looked_up)
        assert looked_up[0].shape == (2, LENGTH, TABLES, WIDTH)
        added = normal(2, LENGTH, TABLES, WIDTH, dtype=types[0], seed=2)
        sums = [normal(rows, WIDTH, dtype=types[1], seed=3) for _ in range(2)]
        own.scatter(added, at, first, sums[0])
        if INTERPRETED and types[1] == torch.bfloat16:
            # It rounds a row's sum once; the interpreter cuts bits off where a GPU rounds.
            sums[1] = sums[1].float()
            torch_kernels.scatter(added, at, first, sums[1])
            torch.testing.assert_close(sums[0].float(), sums[1], rtol=2**-7, atol=0)
        else:
            torch_kernels.scatter(added, at, first, sums[1])
            assert torch.equal(*sums)
    finally:
        torch.set_num_threads(before)


def test_what_is_looked_up_and_added_is_what_plain_indexing_says() -> None:
    at, table = indices(), normal(ROWS, WIDTH)
    added = normal(2, LENGTH, TABLES, WIDTH, dtype=torch.float64, seed=2)
    for name in NAMES:
        assert torch.equal(choose(name, CPU).gather(table, at, 0), table[at])
        total = torch.zeros(ROWS, WIDTH, dtype=torch.float64)
        choose(name, CPU).scatter(added, at, 0, total)
        expected = torch.zeros_like(total).index_put((at,), added, accumulate=True)
        torch.testing.assert_close(total, expected)


def test_on_a_gpu_no_step_waits_for_a_count_of_rows() -> None:
    """A tensor whose size depends on values is waited for, and no CUDA graph can have it."""
    constants = Constants.of(make_tables(orders=(2,), heads=3, table_rows=40, seed=3), pad_id=9)
    with FakeTensorMode(allow_non_fake_inputs=True):  # refuses such tensors
        ids, rows = (torch.empty(2, 50, dtype=torch.int64, device="cuda") for _ in range(2))
        there = Constants(**{n: x.to("cuda") for n, x in attrs.asdict(constants).items()})
        assert torch_kernels.hash_indices(ids, None, there).shape == (2, 50, TABLES)
        at, table = rows.unsqueeze(-1).expand(-1, -1, TABLES), torch.empty(30, 5, device="cuda")
        looked_up = torch_kernels.gather(table, at, 7)
        torch_kernels.scatter(looked_up, at, 7, table)


@pytest.fixture(params=NAMES)
def worker(request: pytest.FixtureRequest) -> Kernels:
    return choose(request.param, CPU)


def table() -> torch.nn.Parameter:
    return torch.nn.Parameter(normal(ROWS, WIDTH))


def loss(weight: Tensor, worker: Kernels, seed: int = 0) -> Tensor:
    rows = look_up(weight, indices(seed), first=0, kernels=worker)
    return (rows * normal(*rows.shape, seed=seed + 10)).sum()


def expected(*seeds: int) -> Tensor:
    weight = table()
    for seed in seeds:
        rows = weight[indices(seed)]
        (rows * normal(*rows.shape, seed=seed + 10)).sum().backward()
    assert weight.grad is not None
    return weight.grad


def test_a_first_gradient_is_made_and_later_ones_are_added_in_place(worker: Kernels) -> None:
    weight = table()
    loss(weight, worker).backward()
    assert weight.grad is not None
    place = weight.grad.data_ptr()
    loss(weight, worker, seed=4).backward()
    assert weight.grad.data_ptr() == place
    assert weight.grad.layout == torch.strided
    torch.testing.assert_close(weight.grad, expected(0, 4))


def test_a_weight_that_is_used_twice_gets_both_gradients(worker: Kernels) -> None:
    weight = table()
    (loss(weight, worker) + loss(weight, worker, seed=4)).backward()
    torch.testing.assert_close(weight.grad, expected(0, 4))
    (loss(weight, worker) + weight.sum()).backward()
    torch.testing.assert_close(weight.grad, expected(0, 4, 0) + 1)


def test_main_grad_is_added_to_and_autograd_gets_nothing_to_add(worker: Kernels) -> None:
    weight: Any = table()
    weight.main_grad = torch.ones(ROWS, WIDTH)
    weight.grad_added_to_main_grad = False
    seen: list[Tensor] = []
    weight.register_post_accumulate_grad_hook(lambda one: seen.append(one.grad))
    loss(weight, worker).backward()
    torch.testing.assert_close(weight.main_grad, expected(0) + 1)
    assert weight.grad_added_to_main_grad is True
    (given,) = seen  # hooks run, as DDP's must
    assert given.is_sparse
    assert given._nnz() == 0
    # A tied weight's hook adds what it is given (`zero_out_wgrad`): nothing.
    before = weight.main_grad.clone()
    assert torch.equal(weight.main_grad.add_(given.data), before)


def test_recomputation_adds_to_main_grad_too(worker: Kernels) -> None:
    weight: Any = table()
    weight.main_grad = torch.zeros(ROWS, WIDTH)
    weight.grad_added_to_main_grad = False
    checkpoint(loss, weight, worker, use_reentrant=False).backward()
    torch.testing.assert_close(weight.main_grad, expected(0))
    assert weight.grad.is_sparse


def test_bfloat16_rows_are_summed_in_the_main_gradients_float32(worker: Kernels) -> None:
    weight: Any = torch.nn.Parameter(normal(ROWS, WIDTH, dtype=torch.bfloat16))
    weight.main_grad = torch.zeros(ROWS, WIDTH)
    weight.grad_added_to_main_grad = False
    at = torch.zeros(1, 300, 1, dtype=torch.int64)
    look_up(weight, at, first=0, kernels=worker).sum().backward()
    assert weight.main_grad[0].tolist() == [300.0] * WIDTH  # bfloat16 stops at 256


@pytest.mark.parametrize("asked", ["autograd.grad", "a tensor hook", "other inputs"])
def test_whoever_else_wants_the_gradient_gets_it_and_the_held_one_stays(
    worker: Kernels, asked: str
) -> None:
    weight = table()
    weight.grad = torch.ones_like(weight)
    other = torch.ones((), requires_grad=True)
    value = loss(weight, worker) * other
    if asked == "autograd.grad":
        (gradient,) = torch.autograd.grad(value, [weight])
        torch.testing.assert_close(gradient, expected(0))
        assert weight.grad.eq(1).all()
    elif asked == "a tensor hook":
        weight.register_hook(lambda gradient: gradient * 2)
        value.backward()
        torch.testing.assert_close(weight.grad, 2 * expected(0) + 1)
    else:
        value.backward(inputs=[other])
        assert weight.grad.eq(1).all()


@pytest.mark.skipif(INTERPRETED, reason="a hundred passes, and its bits are held to torch's")
def test_the_gradient_is_that_of_finite_differences(worker: Kernels) -> None:
    made = make_tables(orders=(2,), heads=2, table_rows=5, seed=3)
    constants = Constants.of(made, pad_id=9)
    ids = torch.tensor([[1, 2, 1, 2, 3], [4, 4, 4, 4, 4]])
    weight = normal(made.rows, 2, dtype=torch.float64).requires_grad_()
    for sequence_first in (False, True):
        assert torch.autograd.gradcheck(
            lambda weight, at=sequence_first: look_up_ngrams(
                weight, ids, None, constants, first=0, kernels=worker, sequence_first=at
            ).square(),
            (weight,),
        )


@pytest.mark.parametrize("repeats", [15, 16, 17, 70])
def test_a_row_that_comes_often_is_summed_in_the_order_of_the_positions(
    worker: Kernels, repeats: int
) -> None:
    at = torch.arange(ROWS).reshape(2, ROWS // 2, 1)
    at.view(-1)[77] = 5
    at.view(-1)[3 : 3 + repeats] = 77  # its first is in the middle of a block
    added = normal(ROWS // 2, 2, 1, WIDTH, seed=2).transpose(0, 1)  # the sequence first
    sums = [torch.full((ROWS, WIDTH), -0.0) for _ in range(2)]
    worker.scatter(added, at, 0, sums[0])
    worker.scatter(added, at, 0, again := torch.full((ROWS, WIDTH), -0.0))
    assert torch.equal(sums[0], again)
    total = torch.full((WIDTH,), -0.0)
    for place in range(3, 3 + repeats):
        total += added.reshape(-1, WIDTH)[place]
    assert torch.equal(sums[0][77], total)
    torch_kernels.scatter(added, at, 0, sums[1])
    assert torch.equal(sums[0].view(torch.int32), sums[1].view(torch.int32))  # zeros' signs too


def test_a_frozen_weight_and_a_pass_without_gradients_keep_none(worker: Kernels) -> None:
    weight = table()
    with torch.no_grad():
        assert not loss(weight, worker).requires_grad
    weight.requires_grad_(False)
    assert not loss(weight, worker).requires_grad


def test_without_a_compiler_torch_takes_over_once_and_an_explicit_cpu_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing() -> None:
        raise NotBuilt("no compiler")

    monkeypatch.setattr(cpu_kernels, "library", nothing)
    with pytest.raises(CannotRunHere, match=r"SEAM-B05(?s:.*)no compiler"):
        choose("cpu", CPU)
    with pytest.warns(SlowBackend, match="no compiler"):
        assert choose(None, CPU) is torch_kernels
    assert choose("torch", CPU) is torch_kernels


def test_initial_rows_do_not_depend_on_who_holds_them() -> None:
    constants = make_tables(orders=(2,), heads=2, table_rows=5_000, seed=3)

    def rows(ranks: int, rank: int) -> Tensor:
        group: Any = type("Group", (), {"size": lambda _: ranks, "rank": lambda _: rank})()
        tables = NgramTables(
            constants,
            width=3,
            pad_id=9,
            seed=4,
            init_std=0.5,
            dtype=torch.float32,
            device=CPU,
            tp_group=group,
            backend=None,
        )
        assert tables.first_row == rank * len(tables.weight)
        return tables.weight.detach()

    whole = rows(1, 0)
    assert torch.equal(torch.cat([rows(4, rank) for rank in range(4)]), whole)
    assert abs(float(whole.std()) - 0.5) < 0.01
    assert len(whole) >= constants.rows
