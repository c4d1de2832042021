"""The Triton backend on a GPU: its bits, its memory, waits and captures. Skipped without a GPU."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_seams_ngram.ops import torch_kernels
from megatron_seams_ngram.ops.dispatch import Kernels, choose
from megatron_seams_ngram.ops.indices import Constants
from megatron_seams_ngram.ops.lookup import look_up_ngrams
from megatron_seams_ngram.tables.hash_tables import HashTables, make_layer_tables, make_tables

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")

GPU = torch.device("cuda")
VOCAB_SIZE = 131_072
#: Row widths: NAM56R's, the released Engram's, and one that fills no word.
WIDTHS = (16, 64, 5)
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture
def triton() -> Kernels:
    """The kernels that a GPU gets by default."""
    chosen = choose(None, GPU)
    assert chosen is choose("triton", GPU)
    return chosen


def tables_of(rows: int, *, shared_hashes: bool) -> HashTables:
    """Sixteen tables, with a hash each or with one for each order."""
    if shared_hashes:
        return make_layer_tables(
            orders=(2, 3), heads=8, table_rows=rows, seed=1, layer=2, layers=(2, 15)
        )
    return make_tables(orders=(2, 3), heads=8, table_rows=rows, seed=1)


def on_gpu(constants: Constants) -> Constants:
    """The constants where the tables are."""
    names = ("multipliers", "biases", "hash_of", "primes", "offsets", "pad_id")
    return Constants(**{name: getattr(constants, name).to(GPU) for name in names})


def tokens(batch: int, length: int, *, seed: int = 0) -> Tensor:
    """Token ids on the CPU, some of them so frequent that their rows are added to very often."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB_SIZE, (batch, length), generator=generator)
    frequent = torch.rand(batch, length, generator=generator)
    ids[frequent < 0.3] = 11
    ids[:, length // 3 : length // 2] = 7
    return ids


def starts_of(kind: str, batch: int, length: int) -> Tensor | None:
    """No documents, those of both rows, or each row's own."""
    if kind == "none":
        return None
    lengths = torch.tensor([[37]] if kind == "shared" else [[37 + 60 * b] for b in range(batch)])
    return torch.arange(length) // lengths * lengths


@pytest.mark.parametrize("shared_hashes", [False, True])
@pytest.mark.parametrize("documents", ["none", "shared", "own"])
@pytest.mark.parametrize("shape", [(2, 1000), (1, 1), (3, 129)])
def test_indices_and_rows_are_bitwise_the_cpus(
    triton: Kernels, shape: tuple[int, int], documents: str, shared_hashes: bool
) -> None:
    made = tables_of(1000, shared_hashes=shared_hashes)
    constants = Constants.of(made, pad_id=VOCAB_SIZE)
    ids, starts = tokens(*shape), starts_of(documents, *shape)
    expected = torch_kernels.hash_indices(ids, starts, constants)
    placed = (ids.to(GPU), None if starts is None else starts.to(GPU), on_gpu(constants))
    assert torch.equal(triton.hash_indices(*placed).cpu(), expected)
    first, rows = 700, made.rows - 1500  # a part, as a rank has it
    for width in WIDTHS:
        for dtype in DTYPES:
            table = torch.randn(rows, width, generator=torch.Generator().manual_seed(1)).to(dtype)
            for sequence_first in (False, True):
                found, at = triton.hash_and_gather(
                    *placed, table.to(GPU), first, sequence_first=sequence_first
                )
                assert torch.equal(at.cpu(), expected)
                assert torch.equal(found.cpu(), torch_kernels.gather(table, expected, first))
                if sequence_first:
                    assert found.transpose(0, 1).is_contiguous()
            looked_up = triton.gather(table.to(GPU), at, first)
            assert torch.equal(looked_up, found)


def test_the_largest_numbers_hash_as_on_a_cpu(triton: Kernels) -> None:
    made = make_tables(orders=(2, 5), heads=3, table_rows=2**40, seed=2**64 - 1)
    constants = Constants.of(made, pad_id=2**62 + 1)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2**62, (2, 500), generator=generator)
    expected = torch_kernels.hash_indices(ids, None, constants)
    assert int(expected.max()) > 2**41
    assert torch.equal(triton.hash_indices(ids.to(GPU), None, on_gpu(constants)).cpu(), expected)


@pytest.mark.parametrize("sequence_first", [False, True])
@pytest.mark.parametrize(
    ("given", "summed", "width"),
    [
        (torch.float32, torch.float32, 16),
        (torch.float32, torch.float32, 5),
        (torch.bfloat16, torch.float32, 16),
        (torch.bfloat16, torch.float32, 64),
        (torch.float64, torch.float64, 5),
        (torch.bfloat16, torch.bfloat16, 64),
    ],
)
def test_gradients_are_bitwise_a_loop_over_the_positions(
    triton: Kernels, given: torch.dtype, summed: torch.dtype, width: int, sequence_first: bool
) -> None:
    constants = Constants.of(tables_of(900, shared_hashes=True), pad_id=VOCAB_SIZE)
    at = torch_kernels.hash_indices(tokens(2, 700), None, constants)
    counts = at.flatten().bincount()
    assert int(counts.max()) > 200  # far more than LONG
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(2, 700, 16, width, generator=generator).to(given)
    first, number = 300, int(at.max()) - 600
    table = torch.randn(number, width, generator=generator).to(summed)
    table[::7] = -0.0
    # In 16 bits a row's sum is rounded once.
    exact = table.float() if summed is torch.bfloat16 else table.clone()
    here = at.flatten() - first
    mine = (here >= 0) & (here < number)
    exact.index_add_(0, here[mine], rows.reshape(-1, width)[mine].to(exact))
    placed = rows.to(GPU)
    if sequence_first:
        placed = placed.transpose(0, 1).contiguous().transpose(0, 1)
    totals = []
    for _ in range(2):
        totals.append(table.to(GPU, copy=True))
        triton.scatter(placed, at.to(GPU), first, totals[-1])
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[summed.itemsize]
    assert torch.equal(totals[0].view(bits), totals[1].view(bits))
    assert torch.equal(totals[0].cpu().view(bits), exact.to(summed).view(bits))


def test_gradients_agree_with_float64_and_with_torch_on_the_gpu(triton: Kernels) -> None:
    constants = Constants.of(tables_of(100_000, shared_hashes=False), pad_id=VOCAB_SIZE)
    at = torch_kernels.hash_indices(tokens(2, 4096), None, constants).to(GPU)
    rows = torch.randn(2, 4096, 16, 16, device=GPU)
    number = int(at.max()) + 1
    found, other = (torch.zeros(number, 16, device=GPU) for _ in range(2))
    truth = torch.zeros(number, 16, device=GPU, dtype=torch.float64)
    triton.scatter(rows, at, 0, found)
    torch_kernels.scatter(rows, at, 0, other)
    truth.index_add_(0, at.flatten(), rows.double().reshape(-1, 16))
    scale = truth.norm()
    assert float((found - truth).norm() / scale) < 1e-6
    assert float((other - truth).norm() / scale) < 1e-6


class Case:
    """A table on the GPU with Megatron's ``main_grad``, and a batch."""

    def __init__(self, *, rows: int = 200_000, length: int = 2048, width: int = 16) -> None:
        made = tables_of(rows, shared_hashes=False)
        self.constants = on_gpu(Constants.of(made, pad_id=VOCAB_SIZE))
        self.weight: Any = torch.nn.Parameter(
            torch.randn(made.rows, width, device=GPU, dtype=torch.bfloat16)
        )
        self.weight.main_grad = torch.zeros(made.rows, width, device=GPU)
        self.weight.grad_added_to_main_grad = False
        self.ids = tokens(2, length).to(GPU)
        self.gradient = torch.randn(2, length, 16, width, device=GPU, dtype=torch.bfloat16)

    def step(self, kernels: Kernels) -> Tensor:
        """Forward and backward; the rows."""
        self.weight.grad = None  # as Megatron's hook leaves it
        rows = look_up_ngrams(self.weight, self.ids, None, self.constants, first=0, kernels=kernels)
        rows.backward(self.gradient)
        return rows.detach()


def test_a_step_adds_to_main_grad_and_its_memory_does_not_grow_with_the_tables(
    triton: Kernels,
) -> None:
    peaks = []
    for rows in (20_000, 2_000_000):
        case = Case(rows=rows)
        case.step(triton)  # Triton's own first use
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        found = case.step(triton)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        assert case.weight.grad_added_to_main_grad
        assert case.weight.grad.is_sparse  # and so nothing of the table's size
        assert case.weight.grad._nnz() == 0
        # Rows, places (indices, keys before and after the sort, their order) and the sort's own.
        assert peaks[-1] < found.nbytes + found.shape[:3].numel() * 64 + 2**22
        del case, found
    assert peaks[0] == peaks[1]


def test_the_host_returns_at_once_behind_queued_work(triton: Kernels) -> None:
    case = Case()
    case.step(triton)
    busy = torch.randn(8192, 8192, device=GPU)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            busy = busy @ busy
        queued = torch.cuda.Event()
        queued.record()
        start = time.perf_counter()
        case.step(triton)
        took = time.perf_counter() - start
        assert not queued.query(), "the queued work was over too soon to tell"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert took < 0.02, f"the host was held for {took * 1e3:.1f} ms"


def test_a_step_is_captured_and_replayed_with_other_tokens(triton: Kernels) -> None:
    case = Case()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        case.step(triton)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = case.step(triton)
    case.weight.main_grad.zero_()
    case.ids.copy_(tokens(2, 2048, seed=5))
    graph.replay()
    replayed = captured.clone(), case.weight.main_grad.clone()
    case.weight.main_grad.zero_()
    assert torch.equal(case.step(triton), replayed[0])
    assert torch.equal(case.weight.main_grad, replayed[1])


def test_recomputation_gives_the_same_bits(triton: Kernels) -> None:
    from torch.utils.checkpoint import checkpoint

    case = Case()
    case.step(triton)
    once = case.weight.main_grad.clone()
    case.weight.main_grad.zero_()
    rows: Any = checkpoint(
        lambda weight: look_up_ngrams(
            weight, case.ids, None, case.constants, first=0, kernels=triton
        ),
        case.weight,
        use_reentrant=False,
    )
    rows.backward(case.gradient)
    assert torch.equal(case.weight.main_grad, once)
