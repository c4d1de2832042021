"""One model by every road: `build_model`, and upstream's trainer from the printed arguments."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import megatron_releases

RELEASES = [*megatron_releases.RUN, "installed"]


def table(repository: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, repository / "scripts" / "one_model.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.suite
@pytest.mark.parametrize("release", RELEASES)
def test_every_recipe_is_one_model_by_both_roads(release: str, repository: Path) -> None:
    done = table(repository, "--release", release)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = done.stdout.splitlines()[1:-1]
    equal = [row for row in rows if row.endswith("equal")]
    refused = [row for row in rows if "refused:" in row]
    recipes = list((repository / "recipes").glob("*.toml"))
    assert len(equal) + len(refused) == len(recipes)
    # NAM56R's MTP depths need latent attention of Megatron's own, which 0.19 has; its Mamba-2 form,
    # without them, needs sparse attention, which 0.17 lacks.
    assert len(refused) <= {"0.17": 2, "0.18": 1}.get(release, 0)


#: A printed flag -> what differs, or what stops the run, where it is not passed on.
DROPPED = {
    "--untie-embeddings-and-output-weights": "share_embeddings_and_output_weights: False",
    "--kv-lora-rank": "kv_lora_rank",
    "--normalization": "normalization",
    "--position-embedding-type": "the model's position_embedding_type: none",
    "--no-persist-layer-norm": "persist_layer_norm",
}


@pytest.mark.megatron
def test_without_one_printed_flag_it_is_another_model(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "latent.toml"
    file.write_text('schema = 1\n[model]\nname = "latent"\npattern = "+-"\n')
    flags = [f"--drop={flag}" for flag in DROPPED]
    done = table(repository, "--release", "installed", file, *flags)
    assert done.returncode == 1, done.stdout + done.stderr
    # Each row begins with the Megatron; the differences below it are set in.
    _, *rows = re.split(r"^(?=\S)", done.stdout, flags=re.MULTILINE)
    rows = [row for row in rows if "latent --" in row]
    assert len(rows) == len(DROPPED)
    for row, says in zip(rows, DROPPED.values(), strict=True):
        assert says in row
