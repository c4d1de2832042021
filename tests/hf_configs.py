"""Configurations of Hugging Face's: written, read, refused, and those that were published."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from megatron_seams.cli import cli
from megatron_seams.errors import RecipeInvalid, Refusal
from megatron_seams.recipes.hf_config import HfModel, read_hf_config

DATA = Path(__file__).parent / "data" / "hf"
ROOT = Path(__file__).resolve().parent.parent

#: File in tests/data/hf -> its pattern, and the blocks that no Megatron builds.
PATTERNS = {
    "nemotron_3_nano": ("MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME", {}),
    "granite_4": ("MEMEMEMEME*EMEME", {}),
    "bamba": ("M-M-*-M-M-*-", {}),
    "qwen3_next": ("GEGEGE*EGEGEGE*E", {}),
    "minimax_m2": ("*E*E*E*E/*E/*E/*E", {}),
    "kimi_linear": ("K-KEKE+EKEKEKE+E", {"K": "kda"}),
    "jamba": ("s-sEs-sE*-sEs-sE", {"s": "mamba1"}),
    "zamba2": ("MMhMMh", {"h": "shared_transformer_mamba"}),
    "falcon_h1": ("p-p-p-p-", {"p": "parallel_attention_mamba"}),
    "minimax": ("lElElElElElElE*E", {"l": "lightning_attention"}),
}


def written(tmp_path: Path, config: Any) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def read(tmp_path: Path, **config: Any) -> HfModel:
    return read_hf_config(written(tmp_path, config))


def pattern(tmp_path: Path, **config: Any) -> str:
    return read(tmp_path, **config).recipe.model.pattern


def refused(tmp_path: Path, config: Any) -> list[str]:
    """The ``found`` of each reason against a configuration."""
    with pytest.raises(Refusal) as found:
        read_hf_config(written(tmp_path, config))
    assert all(isinstance(reason, RecipeInvalid) for reason in found.value.reasons)
    return [reason.found for reason in found.value.reasons]


def command(*arguments: str | Path, code: int) -> str:
    """Both streams of a command."""
    done = CliRunner().invoke(cli, [str(part) for part in arguments], prog_name="registry")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == code, done.output
    return done.output
