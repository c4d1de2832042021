"""The seam's life over published releases: trained where it is needed, loaded natively later."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import forked
import megatron_releases
from megatron_seams.errors import ProofUnreadable
from megatron_seams.records.proof import CHECKPOINT, INDEX, PROBE, read_proof, write_index
from seam_support import registry

pytestmark = pytest.mark.megatron

REPOSITORY = Path(__file__).resolve().parents[3]
RECIPE = Path(__file__).with_name("latent.toml")


#: The first release that needs the seam, whose checkpoints are furthest from the installed one's.
RELEASE = megatron_releases.RUN[0]


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a few training steps through the seam on an older release."""
    if not _native_here():
        pytest.skip("this Megatron does not build MLA by itself: there is nothing to graduate to")
    made = tmp_path_factory.mktemp("proofs") / RELEASE
    arguments = ("smoke", str(RECIPE), "--steps", "3", "--save", str(made))
    done = registry(*arguments, path=[megatron_releases.installation(RELEASE)])
    assert done.returncode == 0, done.stderr
    return made


def _native_here() -> bool:
    from megatron_seams.planning.environment import read_environment

    return read_environment().surface.of_family("mla") is not None


@pytest.fixture
def damaged(proof: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(proof, tmp_path / "proof"))


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "graduation-mla.json").read_text())
    return found


def test_the_checkpoint_loads_natively_with_the_same_keys_and_numbers(proof: Path) -> None:
    done = forked.registry("graduate", "mla", "--from", str(proof))
    assert done.returncode == 0, done.stderr
    assert "seam mla is deletable: delete plugins/mla" in done.stdout
    found = report(proof)
    assert found["deletable"]
    assert found["saved_on"]["megatron_core"].startswith(f"{RELEASE}.")
    assert [layer["position"] for layer in found["layers"]] == [1, 3]
    assert {layer["saved_through"] for layer in found["layers"]} == {"attention_layer *"}
    assert {layer["built_by"] for layer in found["layers"]} == {"mla_layer +"}
    assert found["keys"]["compared"] > 40
    assert found["numbers"]["tokens"] == 4 * 32
    assert found["numbers"]["loss_difference"] <= 1e-6
    assert found["numbers"]["logits_difference"] <= 1e-5
    # The loss of a model that was trained a little, not of one that was never loaded.
    assert 1.0 < found["numbers"]["loss_native"] < 5.5
    schema = REPOSITORY / "docs" / "schema" / "graduation.schema.json"
    jsonschema.validate(found, json.loads(schema.read_text()))


def test_its_receipt_is_refused_until_it_is_accepted(damaged: Path) -> None:
    receipt = str(damaged / "receipt.json")
    refused = registry("verify", receipt)
    assert refused.returncode == 2
    assert "seam mla (@megatron-seams/attention), attention_layer *" in refused.stderr
    assert "native, mla_layer +" in refused.stderr
    taken = registry("accept", receipt, "--reason", "Graduated, see graduation-mla.json.")
    assert taken.returncode == 0, taken.stderr
    assert registry("verify", receipt).returncode == 0


def test_a_release_that_still_needs_the_seam_graduates_nothing(proof: Path) -> None:
    older = megatron_releases.installation(RELEASE)
    done = registry("graduate", "mla", "--from", str(proof), path=[older])
    assert done.returncode == 2
    assert "SEAM-G02" in done.stderr
    assert "layers: 1, 3" in done.stderr


def test_a_seam_that_built_nothing_graduates_from_nothing(proof: Path) -> None:
    done = registry("graduate", "other", "--from", str(proof))
    assert done.returncode == 2
    assert "the proof has no layer of it; its seams: mla" in done.stderr


def _truncated(folder: Path) -> None:
    data = (folder / PROBE).read_bytes()
    (folder / PROBE).write_bytes(data[: len(data) // 2])


def _edited(folder: Path) -> None:
    file = folder / "receipt.json"
    file.write_text(file.read_text().replace('"position": 3', '"position": 4'))


def _unfinished(folder: Path) -> None:
    (folder / INDEX).unlink()


def _other_settings(folder: Path) -> None:
    file = folder / INDEX
    file.write_text(file.read_text().replace('"kv_lora_rank": 64', '"kv_lora_rank": 32'))


@pytest.mark.parametrize("harm", [_truncated, _edited, _unfinished, _other_settings])
def test_a_damaged_proof_proves_nothing(damaged: Path, harm: Callable[[Path], None]) -> None:
    before = {file: file.read_bytes() for file in damaged.rglob("*") if file.is_file()}
    harm(damaged)
    assert before != {file: file.read_bytes() for file in damaged.rglob("*") if file.is_file()}
    with pytest.raises(ProofUnreadable, match="make a new one: a smoke run"):
        read_proof(damaged)


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Save the checkpoint again with another state, through upstream's own code."""
    from megatron.core import dist_checkpointing

    from megatron_seams.planning.environment import read_environment
    from megatron_seams.records.graduation import find_candidate
    from megatron_seams.runtime.checkpoint import RECEIPT, load_checkpoint, saved_receipt
    from megatron_seams.runtime.cpu.world import cpu_world
    from megatron_seams.runtime.model.build import build_model

    checkpoint = folder / CHECKPOINT
    candidate = find_candidate("mla", read_proof(folder), read_environment())
    with cpu_world():
        model = build_model(candidate.plan, settings=candidate.proof.settings)
        load_checkpoint(model, checkpoint)
        receipt = saved_receipt(checkpoint)
        state = model.sharded_state_dict()
        change(state)
        shutil.rmtree(checkpoint)
        checkpoint.mkdir()
        dist_checkpointing.save({**state, RECEIPT: receipt}, str(checkpoint))
    # An honest proof of another model, as far as its index says.
    write_index(candidate.proof)


WEIGHT = "decoder.layers.0.self_attention.linear_proj.weight"


def test_another_weight_gives_other_numbers_and_no_deletion(damaged: Path) -> None:
    def change(state: dict[str, Any]) -> None:
        state[WEIGHT].data.detach()[0, 0] += 0.01

    _rewrite(damaged, change)
    done = forked.registry("graduate", "mla", "--from", str(damaged))
    assert done.returncode == 2
    assert "SEAM-G04" in done.stderr
    assert "deletable" not in done.stdout
    found = report(damaged)
    assert not found["deletable"]
    assert found["keys"] | {"compared": 0} == {
        "compared": 0,
        "missing": [],
        "unexpected": [],
        "different": [],
    }
    assert found["numbers"]["logits_difference"] > 1e-5


def test_every_key_that_differs_is_named(damaged: Path) -> None:
    def change(state: dict[str, Any]) -> None:
        from megatron.core.dist_checkpointing.mapping import ShardedTensor

        renamed = "decoder.layers.0.self_attention.out.weight"
        state[WEIGHT] = ShardedTensor.from_rank_offsets(renamed, state[WEIGHT].data)
        other = WEIGHT.replace("layers.0", "layers.2")
        state[other] = ShardedTensor.from_rank_offsets(other, state[other].data[:-1].clone())

    _rewrite(damaged, change)
    done = forked.registry("graduate", "mla", "--from", str(damaged))
    assert done.returncode == 2
    assert done.stderr.count("SEAM-G03") == 3
    found = report(damaged)
    assert found["keys"]["missing"] == [WEIGHT]
    assert found["keys"]["unexpected"] == ["decoder.layers.0.self_attention.out.weight"]
    assert [entry["key"] for entry in found["keys"]["different"]] == [
        WEIGHT.replace("layers.0", "layers.2")
    ]
    assert found["numbers"] is None
    assert not found["deletable"]
    read_proof(damaged)  # what was written beside it does not damage the proof
