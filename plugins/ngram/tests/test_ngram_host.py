"""Tables on the host: the numbers of resident ones, however their rows came."""

import copy
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plugins.ngram.tests.host_modules import (
    EOD,
    SEAMS,
    Rule,
    adam,
    batch,
    build,
    called,
    descent,
    loss_of,
    sparse_adam,
    trained,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_seams_ngram.engram.options import Options as EngramOptions
from megatron_seams_ngram.hash.options import Options as HashOptions
from megatron_seams_ngram.host import rows as host_rows
from megatron_seams_ngram.host import rule as host_rule
from megatron_seams_ngram.host import stepping
from megatron_seams_ngram.host.ahead import fetch_ahead, look_ahead
from megatron_seams_ngram.host.fetched import Guess, moved_to_device
from megatron_seams_ngram.host.rows import Distinct
from megatron_seams_ngram.ops import cpu_kernels, torch_kernels


@pytest.mark.parametrize("seam", SEAMS)
@pytest.mark.parametrize(
    ("rule", "seeds"), [(descent, (1, 2, 1, 3, 2)), (adam, (1, 1, 1, 1, 1))], ids=["sgd", "adam"]
)
def test_a_batch_a_step_gives_the_losses_and_rows_of_resident_tables_bit_for_bit(
    seam: str, rule: Rule, seeds: tuple[int, ...]
) -> None:
    # Adam moves a row that has no gradient, and so is the same where every step has the same rows.
    batches = [[batch(seed)] for seed in seeds]
    resident, host = build(seam, "device"), build(seam, "host")
    expected = trained(resident, rule, batches)
    assert trained(host, rule, batches) == expected
    assert len(set(expected)) == 5
    assert torch.equal(host.tables.weight, resident.tables.weight.detach())
    others = dict(resident.named_parameters())
    for name, one in host.named_parameters():
        assert torch.equal(one, others[name]), name


@pytest.mark.parametrize("seam", SEAMS)
@pytest.mark.parametrize(
    "made",
    [
        partial(torch.optim.Adam, lr=0.05),
        partial(torch.optim.Adam, lr=0.05, weight_decay=0.1),
        partial(torch.optim.AdamW, lr=0.05, weight_decay=0.1),
        partial(torch.optim.SGD, lr=0.05, weight_decay=0.1),
    ],
    ids=["adam", "into the gradient", "off the weight", "sgd"],
)
def test_where_all_rows_are_updated_they_are_resident_ones_whatever_the_batches(
    seam: str, made: Callable[..., torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_rule, "PART", 64)  # parts of the tables, the last one shorter

    def rule(module: Any) -> Any:
        optimizer = made(module.parameters())
        return optimizer, optimizer.step

    batches = [[batch(seed)] for seed in (1, 2, 1, 3, 2)]
    resident, host = build(seam, "device"), build(seam, "host", host_updates="all")
    expected = trained(resident, rule, batches)
    assert trained(host, rule, batches, ahead="right") == expected
    assert torch.equal(host.tables.weight, resident.tables.weight.detach())
    touched = build(seam, "host")
    assert trained(touched, rule, batches) != expected


def test_adam_of_rows_that_come_and_go_is_torchs_sparse_adam() -> None:
    batches = [[batch(seed)] for seed in (1, 2, 1, 3, 2)]
    resident, host = build("engram", "device"), build("engram", "host")
    expected = torch.tensor(trained(resident, sparse_adam, batches))
    found = torch.tensor(trained(host, adam, batches))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        host.tables.weight, resident.tables.weight.detach(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("ahead", ["right", "a copy", "wrong"])
def test_fetching_ahead_changes_no_number_whether_the_guess_is_right_or_wrong(ahead: str) -> None:
    batches = [[batch(seed)] for seed in (1, 2, 1, 1, 3)]
    plain, guessing = build("engram", "host"), build("engram", "host")
    assert trained(guessing, descent, batches, ahead=ahead) == trained(plain, descent, batches)
    assert torch.equal(guessing.tables.weight, plain.tables.weight)


def test_micro_batches_of_a_step_add_up() -> None:
    batches = [[batch(1), batch(2), batch(1)], [batch(4), batch(2)]]
    resident, host = build("ngram_hash", "device"), build("ngram_hash", "host")
    expected = torch.tensor(trained(resident, descent, batches))
    found = torch.tensor(trained(host, descent, batches, ahead="right"))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        host.tables.weight, resident.tables.weight.detach(), rtol=1e-6, atol=1e-7
    )


def test_finding_rows_once_is_what_torch_finds_by_sorting() -> None:
    generator = torch.Generator().manual_seed(0)
    distinct = Distinct(1000)
    for count in (0, 1, 50, 5000):
        rows = torch.randint(1000, (count,), generator=generator)
        found, places = distinct(rows)
        assert torch.equal(found.sort().values, rows.unique())
        assert torch.equal(found[places], rows)
        again, _ = distinct(rows)
        assert torch.equal(again, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cpus_kernel_writes_rows_as_torch_does(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(500, 3, generator=generator).to(dtype)
    rows = torch.randperm(500, generator=generator)[:300]
    values = torch.randn(300, 3, generator=generator)
    expected = table.clone()
    torch_kernels.put(values, rows, expected)
    cpu_kernels.put(values, rows, table)
    assert torch.equal(table, expected)
    assert torch.equal(table[rows], values.to(dtype))


def test_a_right_guess_is_used_and_fetched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    host, ids = build("ngram_hash", "host"), batch(1)
    fetched = []

    def moved(rows: Tensor, *others: Any) -> Any:
        fetched.append(rows)
        return moved_to_device(rows, *others)

    monkeypatch.setattr(host_rows, "moved_to_device", moved)
    guesses = host.tables.host._guesses
    for times in (1, 2):
        fetch_ahead(host, ids)
        guesses[0]._found.result()
        assert len(fetched) == times
        with torch.no_grad():
            host(ids)
        assert len(fetched) == times
        assert not guesses
    with torch.no_grad():
        host(ids)  # a guess is for one batch
    assert len(fetched) == 3
    fetch_ahead(host, ids)
    guesses[0]._found.result()
    ids.fill_(5)  # the same tensor, with another batch
    with torch.no_grad():
        found = host(ids)
    assert len(fetched) == 5
    assert torch.equal(found, build("ngram_hash", "host")(ids.clone()).detach())


def test_rows_that_a_step_changes_are_moved_again_and_no_others() -> None:
    host, ids = build("ngram_hash", "host"), batch(1)
    optimizer = torch.optim.SGD(host.parameters(), lr=0.5)
    loss_of(host, ids).backward()
    following = batch(2)
    fetch_ahead(host, following)
    (guess,) = host.tables.host._guesses
    found = guess._found.result()  # looked up before the step
    before = host.tables.weight.clone()
    optimizer.step()
    changed = (host.tables.weight != before).any(dim=1)
    stale = guess._stale(found.rows)
    assert stale is not None
    assert torch.equal(stale, changed[found.rows])
    assert 0 < stale.sum() < len(stale)
    assert torch.equal(called(host, following), called(copy.deepcopy(host), following))
    fetch_ahead(host, following)
    (guess,) = host.tables.host._guesses
    assert guess._stale(found.rows) is None  # of the values of now


@pytest.mark.parametrize("beside", [True, False])
def test_a_guess_is_fetched_beside_the_model_or_at_once_and_its_error_comes_out_at_need(
    beside: bool,
) -> None:
    threads = []

    def fails() -> Any:
        threads.append(threading.current_thread())
        message = "no rows"
        raise LookupError(message)

    ids, host = batch(1), build("ngram_hash", "host")
    asked: Any = {"beside": beside, "ids": ids, "starts": None, "stale": lambda _: None}
    guess = Guess(fails, batch=(ids,), **asked)
    guess.begin()
    with pytest.raises(LookupError, match="no rows"):
        guess.fetched(torch.zeros(1))
    assert (threads == [threading.main_thread()]) == (not beside)

    def fetch() -> Any:
        return host.tables.host.fetch(host.indices(ids), 0, torch.device("cpu"))

    guess = Guess(fetch, batch=(ids, None), **asked)
    host.tables.host.expect(guess)
    assert torch.equal(called(host, ids), called(build("ngram_hash", "device"), ids))
    assert not host.tables.host._guesses


def test_looking_ahead_gives_every_batch_in_its_order() -> None:
    host = build("ngram_hash", "host")
    batches = [{"tokens": batch(seed)} for seed in range(4)]
    seen = []
    for one in look_ahead(iter(batches), host, lambda given: (given["tokens"], None)):
        seen.append(one)
        assert host.tables.host.guessed_of((one["tokens"], None)) is not None
    assert [id(one) for one in seen] == [id(one) for one in batches]
    assert list(look_ahead(iter([]), host, lambda given: given)) == []


@pytest.mark.parametrize("seam", SEAMS)
def test_documents_end_where_they_end_for_resident_tables(seam: str) -> None:
    ids = batch(5, 1, 14)
    ids[0, 6] = EOD
    ends = torch.tensor([0, 3, 9, 14], dtype=torch.int32)
    for asked, given in (({"end_of_document_id": EOD}, None), ({}, ends)):
        resident, host = build(seam, "device", **asked), build(seam, "host", **asked)
        expected = called(resident, ids, given)
        assert torch.equal(called(host, ids, given), expected)
        fetch_ahead(host, ids, cu_seqlens=given)
        assert torch.equal(called(host, ids, given), expected)
        assert not torch.equal(called(build(seam, "device"), ids), expected)
        # Other boundaries are another batch, though the ids are the same.
        fetch_ahead(host, ids, cu_seqlens=torch.tensor([0, 14], dtype=torch.int32))
        assert torch.equal(called(host, ids, given), expected)


@pytest.mark.parametrize(("first", "second"), [("device", "host"), ("host", "device")])
def test_a_state_dict_moves_between_the_two(first: str, second: str) -> None:
    one, other = build("engram", first, seed=1), build("engram", second, seed=2)
    ids = batch(1)
    trained(one, descent, [[ids]])
    state = one.state_dict()
    assert "tables.weight" in state
    other.load_state_dict(state, strict=True)
    assert torch.equal(called(other, ids), called(one, ids))
    state["tables.weight"] = state["tables.weight"][1:]
    with pytest.raises(RuntimeError, match=r"size mismatch for tables\.weight"):
        other.load_state_dict(state)
    del state["tables.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*tables\.weight"):
        other.load_state_dict(state)


def test_nothing_that_moves_or_wraps_parameters_sees_the_rows() -> None:
    host = build("ngram_hash", "host")
    before = host.tables.weight
    assert "tables.weight" not in dict(host.named_parameters())
    assert "tables.weight" not in dict(host.named_buffers())
    host.to(torch.float64).to("meta")
    assert host.tables.weight is before
    assert before.device.type == "cpu"
    assert before.dtype == torch.float32


class _Made(TorchDispatchMode):
    """Notes the sizes of what torch makes."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.dim() == 2 and not made.is_sparse:
            self.rows.add(len(made))
        return made


@pytest.mark.parametrize("place", ["device", "host"])
def test_no_gradient_of_the_tables_size_is_made(place: str) -> None:
    module = build("ngram_hash", place, table_rows=1000)
    size = len(module.tables.weight)
    with _Made() as seen:
        loss_of(module, batch(1)).backward()
    assert (size in seen.rows) == (place == "device")
    if place == "host":
        (pending,) = module.tables.host._pending
        assert len(pending[0]) == len(set(module.indices(batch(1)).flatten().tolist()))


def test_in_bf16_the_rows_stay_in_float32_and_the_gradient_is_summed_so() -> None:
    host = build("ngram_hash", "host", dtype=torch.bfloat16)
    resident = build("ngram_hash", "device", dtype=torch.bfloat16)
    ids = batch(1)
    assert host.tables.weight.dtype == torch.float32
    expected = called(resident, ids)
    assert torch.equal(called(host, ids), expected)
    assert expected.dtype == torch.bfloat16
    loss_of(host, ids).backward()
    _, gradient = host.tables.host.take()
    assert gradient.dtype == torch.float32
    assert not torch.equal(gradient, gradient.bfloat16().float())


def test_a_copy_is_trained_by_itself() -> None:
    original = build("ngram_hash", "host")
    trained(original, descent, [[batch(1)]])
    other = copy.deepcopy(original)
    before = original.tables.weight.clone()
    trained(other, descent, [[batch(2)]])
    assert torch.equal(original.tables.weight, before)
    assert not torch.equal(other.tables.weight, before)


def test_a_gradient_that_zero_grad_has_dropped_is_not_applied() -> None:
    plain, host = build("ngram_hash", "host"), build("ngram_hash", "host")
    optimizer = torch.optim.SGD(host.parameters(), lr=0.05)
    loss_of(host, batch(8)).backward()
    optimizer.zero_grad()
    loss_of(host, batch(1)).backward()
    optimizer.step()
    trained(plain, descent, [[batch(1)]])
    assert torch.equal(host.tables.weight, plain.tables.weight)


@pytest.mark.parametrize("seam", SEAMS)
def test_rows_are_frozen_with_the_parameters_beside_them(seam: str) -> None:
    host, ids = build(seam, "host").requires_grad_(False), batch(1)
    assert not called(host, ids).requires_grad
    host.requires_grad_()
    loss_of(host, ids).backward()
    assert host.tables.host.has_gradient


def test_gradients_of_rows_are_averaged_over_replicas_whoever_averages_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = build("ngram_hash", "host")
    asked = []

    def halved(rows: Tensor, gradient: Tensor, *others: Any) -> Any:
        asked.append(others)
        return rows, gradient / 2

    monkeypatch.setattr(stepping, "reduced", halved)
    host.tables.dp_group = SimpleNamespace(size=lambda: 2)
    before = host.tables.weight.clone()
    loss_of(host, batch(1)).backward()
    (parts,) = host.tables.host._pending
    rows, gradient = parts[0], parts[1].clone()
    torch.optim.SGD(host.parameters(), lr=1.0).step()
    assert asked == [(host.tables.host, host.tables.dp_group)]
    assert torch.equal(host.tables.weight[rows], before[rows] - gradient / 2)


def test_an_optimizer_of_something_else_does_not_step_the_rows() -> None:
    host = build("ngram_hash", "host")
    before = host.tables.weight.clone()
    loss_of(host, batch(1)).backward()
    strange = nn.Parameter(torch.ones(1))
    strange.grad = torch.ones(1)
    torch.optim.SGD([strange], lr=1.0).step()
    assert torch.equal(host.tables.weight, before)
    assert host.tables.host.has_gradient
    # As after `zero_grad`: the gradient was of no use, and the rows would never learn.
    host.zero_grad()
    with pytest.warns(stepping.RowsNotStepped, match="dropped unused"):
        loss_of(host, batch(1)).backward()
    torch.optim.SGD(host.parameters(), lr=1.0).step()
    assert not torch.equal(host.tables.weight, before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(host, batch(1)).backward()


def test_a_module_with_tables_on_the_host_imports_no_megatron() -> None:
    code = (
        "import sys, megatron_seams_ngram.hash.module as m; print('megatron.core' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_option_has_two_values() -> None:
    assert HashOptions().tables == EngramOptions().tables == "device"
    with pytest.raises(ValueError, match="tables"):
        HashOptions(tables="disk")
    assert HashOptions(tables="host", host_updates="all").host_updates == "all"
    for options in (HashOptions, EngramOptions):
        with pytest.raises(ValueError, match="expected 'touched' with tables = 'device'"):
            options(host_updates="all")
