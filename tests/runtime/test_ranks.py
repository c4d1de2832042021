"""Two real processes over gloo: two pipeline stages, seams on both, one training step."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.megatron

RANK = Path(__file__).parent / "pipeline_rank.py"


def test_two_pipeline_stages_train_with_seams_on_both(repository, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run"]
    command += ["--standalone", "--nproc-per-node", "2", str(RANK), str(tmp_path)]
    path = os.pathsep.join([str(RANK.parent), str(RANK.parent / "seams"), *sys.path])
    done = subprocess.run(
        command,
        cwd=repository,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # A file for each rank: their lines may interleave on a shared standard output.
    said = [(tmp_path / str(stage)).read_text(encoding="utf-8") for stage in (0, 1)]
    assert [line.split(";")[0] for line in said] == [
        "MambaLayer 1, TransformerLayer 2",
        "WholeLayer 3, MambaLayer 4",
    ]
    for line, has in zip(said, (True, False), strict=True):
        assert f"embedding.bonus {has}" in line
        assert "without gradient []" in line
    # The checkpoint's keys carry the global number on both stages.
    assert "decoder.layers.3.mixer.out.weight" in said[1]
