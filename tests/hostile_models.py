"""Hostile inputs: recipes, models' configurations, and CODEOWNERS."""

import json
from pathlib import Path
from typing import Any

from hostile import hostile, raising
from megatron_seams.governance.codeowners import read_codeowners
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.hf_config import read_hf_config
from megatron_seams.recipes.pattern import MAX_DEPTH
from megatron_seams.recipes.recipe import load_recipe
from megatron_seams.seams.discovery import Discovery
from megatron_seams.upstream.surface import NativeSurface

NO_MEGATRON = Environment(surface=NativeSurface(), discovery=Discovery())


def resolved(file: Path) -> None:
    resolve(load_recipe(file), NO_MEGATRON)


RECIPE = raising(resolved)
CONFIGURATION = raising(read_hf_config)


def recipe(folder: Path, text: str) -> Path:
    folder.mkdir()
    file = folder / "recipe.toml"
    file.write_text(f'schema = 1\n[model]\nname = "m"\npattern = "M"\n{text}')
    return file


def configuration(folder: Path, **keys: Any) -> Path:
    folder.mkdir()
    file = folder / "config.json"
    file.write_text(json.dumps({"hidden_size": 64, "num_hidden_layers": MAX_DEPTH, **keys}))
    return file


@hostile(RECIPE, "SEAM-C01")
def depth_of_5000_hexadecimal_digits(folder: Path) -> Path:
    return recipe(folder, f"depth = 0x{'f' * 5000}\n")


@hostile(RECIPE, "SEAM-C01")
def setting_of_17000_binary_digits(folder: Path) -> Path:
    return recipe(folder, f"[megatron]\nhidden_size = 0b{'1' * 17_000}\n")


@hostile(RECIPE, "SEAM-R01", "SEAM-R08")
def ranks_without_number(folder: Path) -> Path:
    return recipe(folder, "[parallelism]\npipeline-parallel = 0x7fffffffffffffff\n")


@hostile(RECIPE, "SEAM-R01", "SEAM-R08")
def ends_on_ranks_without_number(folder: Path) -> Path:
    ends = {"first": 1, "last": 1}
    sizes = [f"num_layers_in_{end}_pipeline_stage = {size}" for end, size in ends.items()]
    spread = "[parallelism]\npipeline-parallel = 0x7fffffffffffffff\n"
    return recipe(folder, "\n".join(["depth = 2", spread, "[megatron]", *sizes, ""]))


@hostile(RECIPE, "SEAM-R01")
def a_rank_for_each_of_100000_layers(folder: Path) -> Path:
    spread = f"[parallelism]\npipeline-parallel = {MAX_DEPTH}\n"
    return recipe(folder, f"depth = {MAX_DEPTH}\n{spread}")


@hostile(RECIPE, "SEAM-R01")
def reasons_for_50000_seams(folder: Path) -> Path:
    entry = '[[justify]]\nseam = "s{}"\nreason = "r"\nreview-by = 2030-01-01\n'
    return recipe(folder, "".join(map(entry.format, range(50_000))))


@hostile(CONFIGURATION, "SEAM-C01")
def layers_that_are_no_numbers(folder: Path) -> Path:
    lists = {"full_attn_layers": ["a", 1], "kda_layers": [{}]}
    return configuration(folder, model_type="kimi_linear", linear_attn_config=lists)


@hostile(CONFIGURATION)
def attention_at_100000_indices(folder: Path) -> Path:
    places = list(range(MAX_DEPTH))
    return configuration(folder, model_type="bamba", attn_layer_indices=places)


@hostile(CONFIGURATION)
def dense_layers_at_100000_indices(folder: Path) -> Path:
    keys = {"full_attention_interval": 4, "num_experts": 4, "mlp_only_layers": [*range(MAX_DEPTH)]}
    return configuration(folder, model_type="qwen3_next", **keys)


@hostile(CONFIGURATION, "SEAM-C01")
def blocks_of_100000_names(folder: Path) -> Path:
    names = [f"block {number}" for number in range(MAX_DEPTH)]
    return configuration(folder, model_type="bamba", layers_block_type=names)


@hostile(CONFIGURATION, "SEAM-C01")
def last_of_200000_keys_twice(folder: Path) -> Path:
    file = configuration(folder)
    keys = [f'"k{number}": 1' for number in range(200_000)]
    file.write_text(f"{{{', '.join([*keys, keys[-1]])}}}")
    return file


@hostile(raising(read_codeowners))
def address_of_300000_dots(folder: Path) -> Path:
    folder.mkdir()
    file = folder / "CODEOWNERS"
    file.write_text(f"* a@{'b.' * 300_000}@\n")
    return file
