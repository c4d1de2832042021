"""Which ranks share the tables' rows; what two of them compute is in ``test_ngram_ranks.py``."""

from types import SimpleNamespace
from typing import Any

import pytest

from megatron_seams.base.structure import structure
from megatron_seams.errors import FeatureInvalid
from megatron_seams_ngram.engram.options import Options as MemoryOptions
from megatron_seams_ngram.expert_ranks import expert_ranks
from megatron_seams_ngram.hash.options import Options

torch = pytest.importorskip("torch")  # which counts the ranks, so that --light leaves this out


def groups(**sizes: int) -> Any:
    """Upstream's groups, of one rank where nothing else is given."""
    every = {"tp": 1, "expt_tp": 1, "ep": 4, "expt_dp": 2, **sizes}
    return SimpleNamespace(
        **{name: SimpleNamespace(size=lambda size=size: size) for name, size in every.items()}
    )


def config(graphs: str = "none") -> Any:
    return SimpleNamespace(cuda_graph_impl=graphs)


def test_the_rows_are_divided_over_tensor_ranks_unless_the_recipe_says_otherwise() -> None:
    assert Options().divided_over == MemoryOptions().divided_over == "tensor"
    assert expert_ranks("tensor", groups(tp=8), config=config(), seam="engram") is None


def test_the_peers_have_a_part_each_and_the_replicas_the_same() -> None:
    given = groups()
    found = expert_ranks("expert", given, config=config(), seam="engram")
    assert found is not None
    assert found.peers is given.ep
    assert found.replicas is given.expt_dp
    assert expert_ranks("expert", groups(ep=1), config=config(), seam="engram") is None


@pytest.mark.parametrize(
    ("sizes", "graphs", "found"),
    [
        ({"tp": 2}, "none", "2 tensor-parallel ranks of the model and 1 of each expert"),
        ({"expt_tp": 2}, "none", "1 tensor-parallel ranks of the model and 2 of each expert"),
        ({}, "local", "CUDA graphs"),
    ],
)
def test_what_would_train_another_model_is_refused(
    sizes: dict[str, int], graphs: str, found: str
) -> None:
    with pytest.raises(FeatureInvalid, match=found) as refused:
        expert_ranks("expert", groups(**sizes), config=config(graphs), seam="ngram_hash")
    assert refused.value.code == "SEAM-R11"
    assert 'divided-over = "tensor"' in str(refused.value)


@pytest.mark.parametrize("kind", [Options, MemoryOptions])
def test_tables_on_the_host_are_not_shared_by_expert_ranks(kind: type[Any]) -> None:
    options, faults = structure(kind, {"divided-over": "expert", "tables": "host"})
    assert options is None
    assert "expected 'tensor' with tables = 'host'" in str(faults[0])
    assert kind(divided_over="expert").divided_over == "expert"
