"""Tables ask for large pages, where the system has them."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_seams_ngram.ngram_tables import NgramTables
from megatron_seams_ngram.ops.dispatch import choose
from megatron_seams_ngram.ops.lookup import look_up
from megatron_seams_ngram.tables.hash_tables import make_tables

MAPS = Path("/proc/self/smaps")
CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(
    not MAPS.exists() or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="a system without large pages, or that does not show which memory asked for them",
)


def asked_for_large_pages(tensor: Tensor) -> bool:
    """Whether the mapping that holds the tensor's middle bears the kernel's mark ("hg")."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", MAPS.read_text()):
        start, end = (int(bound, 16) for bound in mapping.split()[0].split("-"))
        if start <= middle < end:
            return bool(re.search(r"^VmFlags:.* hg\b", mapping, flags=re.MULTILINE))
    pytest.fail("the kernel shows no mapping there")


def tables(table_rows: int) -> NgramTables:
    return NgramTables(
        make_tables(orders=(2,), heads=4, table_rows=table_rows, seed=0),
        width=16,
        pad_id=100,
        seed=0,
        init_std=0.02,
        dtype=torch.float32,
        device=CPU,
        tp_group=None,
        backend="torch",
    )


def test_a_large_table_and_the_gradient_made_for_it_ask_for_large_pages() -> None:
    weight = tables(100_000).weight
    assert asked_for_large_pages(weight)
    indices = torch.arange(4).expand(1, 1, 4)
    look_up(weight, indices, first=0, kernels=choose("torch", CPU)).sum().backward()
    assert weight.grad is not None
    assert asked_for_large_pages(weight.grad)


def test_a_table_below_a_large_page_is_left_as_it_is() -> None:
    assert not asked_for_large_pages(tables(100).weight)
