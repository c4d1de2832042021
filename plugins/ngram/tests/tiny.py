"""Plans of the tiny models that ranks and optimizers are tested with."""

import functools
from collections.abc import Mapping
from typing import Any

from megatron_seams.base.structure import structure
from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import Recipe

LENGTH, VOCABULARY = 16, 64
SETTINGS = {
    "vocab_size": VOCABULARY,
    "max_sequence_length": LENGTH,
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_attention_heads": 4,
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}

_here = functools.cache(read_environment)


def planned(table: Mapping[str, Any]) -> Plan:
    """Resolve a recipe, as the table of its file, over the seams and the Megatron installed."""
    recipe, faults = structure(Recipe, table)
    assert recipe is not None, faults
    return resolve(recipe, _here())
