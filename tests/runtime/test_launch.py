"""Under upstream's trainer: the stack of a receipt, or a stop; never upstream's default stack."""

import json
from pathlib import Path

import pytest

import forked
from agreement_drill import RECIPE
from seam_support import install_plugin, manifest_table, registry

pytestmark = [pytest.mark.megatron, pytest.mark.release]

HERE = Path(__file__).parent
ROTARY = """\
position_embedding_type = "rope"
rotary_base = 500000
"""
FEATURE = """
[[features]]
family = "ngram"

[[features]]
family = "engram"
layers = [2]

[policy.pin]
ngram = "bonus"
engram = "memo"
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    rider = (HERE / "seams" / "rider" / "plugin.py").read_text().replace("recurrent_", "kda_")
    bonus, memo = ((HERE / "seams" / name / "plugin.py").read_text() for name in ("bonus", "memo"))
    manifests = {
        "rider": (manifest_table("rider", "kda"), rider),
        "bonus": (manifest_table("bonus", "ngram", placement="embedding"), bonus),
        "memo": (manifest_table("memo", "engram", placement="residual"), memo),
        "absent": (
            manifest_table("absent", "gone", slots=["mamba_layer"]),
            "import nowhere_at_all",
        ),
    }
    for name, (manifest, code) in manifests.items():
        install_plugin(folder / "site", f"acme-{name}", {f"acme_{name}": manifest}, code=code)
    receipts = {
        "receipt": RECIPE + FEATURE,
        "missing": RECIPE.replace('"kda"', '"gone"'),
        "other": RECIPE + FEATURE,
        "native": RECIPE.replace("*K*K", "*-*-").replace(
            "hidden_dropout",
            'position_embedding_type = "rope"\nrotary_base = 500000\nhidden_dropout',
        ),
    }
    for name, text in receipts.items():
        (folder / f"{name}.toml").write_text(text)
        argument = str(folder / f"{name}.json")
        done = registry(
            "resolve",
            str(folder / f"{name}.toml"),
            "--receipt",
            argument,
            path=[folder / "site"],
        )
        assert done.returncode == 0, done.stderr
    written = (folder / "receipt.json").read_text()
    (folder / "edited.json").write_text(written.replace('"position": 2', '"position": 3'))
    _rewrite(folder / "other.json", "acme-rider", "acme-other")
    (folder / "versions.json").write_text(written)
    torch = json.loads(written)["software"]["torch"]
    _rewrite(folder / "versions.json", f'"torch": "{torch}"', '"torch": "1.0"', held=["torch"])
    forked.run_python(
        *(HERE / "launched_run.py", folder, folder / "receipt.json", folder / "missing.json"),
        path=[folder / "site"],
        code=0,
    )
    # Without the receipt's variable: the spec holds all that a model needs.
    forked.run_python(
        HERE / "launched_run.py", folder / "spec.pickle", path=[folder / "site"], code=0
    )
    made = json.loads((folder / "found.json").read_text())
    made["keys by a copy"] = json.loads((folder / "spec.keys").read_text())
    return made


def _rewrite(receipt, old, new, held=()):
    """Another receipt with a digest of its own, as an older environment would have written it."""
    from megatron_seams.records.receipt import receipt_digest

    body = json.loads(receipt.read_text().replace(old, new))
    body |= {"hold_software": list(held)} if held else {}
    body["digest"] = receipt_digest(body)
    text = json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    receipt.write_text(text)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("unset", ["SEAM-B09", "MEGATRON_SEAMS_RECEIPT is not set"]),
        ("edited", ["SEAM-V01", "it was edited"]),
        ("another plan", ["SEAM-V02", "acme-other", "acme-rider"]),
        ("a version that is held", ["SEAM-V02", "software.torch: 1.0"]),
        ("a plugin without its module", ["SEAM-B01", "nowhere_at_all"]),
        (
            "import error",
            ["the seams' stack cannot be made", "megatron_seams.runtime.trainer.stack"],
        ),
    ],
)
def test_what_goes_wrong_stops_the_run_and_is_never_an_import_error(found, case, expected):
    assert not found[case].startswith("an ImportError")
    assert [text for text in expected if text not in found[case]] == []


def test_upstreams_model_gets_the_seams_of_the_receipt_and_trains(found):
    assert found["layers"] == ["TransformerLayer", "MambaLayer"] * 2
    assert found["mixers"] == ["RunningMean"] * 2
    assert found["without gradient"] == []


def test_upstreams_own_builder_makes_the_same_model(found):
    built = found["keys by upstream's builder"]
    if built is None:
        pytest.skip("this release's megatron.training.models.hybrid cannot be loaded here")
    assert built == found["keys"]


def test_a_copied_and_pickled_spec_builds_the_same_model_in_another_process(found):
    assert found["by its factory"] is True
    assert found["keys by a copy"] == found["keys"]


def test_a_native_plan_is_held_to_its_receipt_and_is_upstreams_own_model(found):
    assert found["native keys"] == found["upstream's keys"]


def test_features_are_attached_before_anything_wraps_the_model(found):
    assert "embedding.bonus.table.weight" in found["keys"]
    assert "decoder.layers.1.memo.table.weight" in found["keys"]
    assert found["hooks left"] == 0
    assert found["hooks left at the end"] == 0


def test_a_rank_that_the_others_would_wait_for_for_ever_stops_the_run(tmp_path):
    from megatron_seams.errors import Refusal
    from megatron_seams.runtime.trainer.stack import RECEIPT, receipt_stack

    recipe, receipt = tmp_path / "recipe.toml", tmp_path / "receipt.json"
    text = RECIPE.replace("*K*K", "D---").replace('K = "kda"', "")
    text = text.replace("[megatron]\n", "[megatron]\ndsa_indexer_loss_coeff = 0.01\n")
    recipe.write_text(text + "\n[parallelism]\npipeline-parallel = 2\n")
    done = registry("resolve", recipe, "--receipt", receipt)
    if "SEAM-R01" in done.stderr:
        pytest.skip("this release has no token for sparse attention")
    assert done.returncode == 0, done.stderr
    with pytest.raises(Refusal, match=r"SEAM-R08[^\0]*rank 1 has no layer"):
        receipt_stack({RECEIPT: str(receipt)})


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("moved", "--hybrid-layer-pattern: *M*M"),
        ("shorter", "this run's arguments say 2"),
        ("other norms", "the norms of queries and keys"),
        ("another stage", "the number of layers on this stage: [4]"),
        ("another MTP", "the number of MTP depths: 0"),
        ("another size", "[megatron] hidden_size: 32"),
        ("other pipeline ranks", "the number of pipeline ranks: 1"),
        ("tied embeddings", "share_embeddings_and_output_weights: False"),
        ("another vocabulary", "the model's vocab_size: 64"),
        ("other positions", "the model's position_embedding_type: rope"),
        ("another rotary base", "the model's rotary_base: 500000"),
        ("rotated in part", "the model's rotary_percent: 1.0"),
        ("positions interpolated", "the model's seq_len_interpolation_factor: None"),
        ("native, another size", "[megatron] hidden_size: 32"),
        ("native, tied", "share_embeddings_and_output_weights: False"),
    ],
)
def test_arguments_that_spell_other_layers_than_the_receipt_stop_the_run(found, case, expected):
    assert "SEAM-B09" in found[case]
    assert expected in found[case]
