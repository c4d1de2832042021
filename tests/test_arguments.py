"""`registry args`: words that a shell keeps apart and that upstream's own parser takes."""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest
from click.testing import CliRunner

from megatron_seams.cli import cli
from megatron_seams.errors import (
    NoArgument,
    RecipeInvalid,
    Refusal,
    SpecialisationInvalid,
    UpstreamForbids,
)
from megatron_seams.planning.arguments import native_arguments
from megatron_seams.planning.environment import Environment, read_environment
from megatron_seams.upstream.locate import importable_megatron
from megatron_seams.upstream.settings import NativeSettings, read_settings
from megatron_seams.upstream.surface import read_surface
from seam_support import environment, make_seam, only, plan, reasons, recipe, registry, toml

SIZES = {"hidden_size": 64, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def here() -> tuple[Environment, NativeSettings]:
    """The importable Megatron with one test seam."""
    source, _ = importable_megatron()
    assert source is not None
    seam = make_seam("kda", "kda", slots=["mamba_layer"])
    made = attrs.evolve(environment(seam, native=read_surface(source)), source=source)
    return made, read_settings(source)


def words(asked: Any, here: tuple[Environment, NativeSettings]) -> tuple[str, ...]:
    return native_arguments(plan(asked, here[0]), here[1]).words


def test_latent_attention_by_upstreams_own_switch_is_native_and_needs_no_seam(
    here: tuple[Environment, NativeSettings],
) -> None:
    asked = recipe("*E*-", megatron={"multi_latent_attention": True, **SIZES})
    made = plan(asked, here[0])
    assert [layer.family for layer in made.layers] == ["mla", "moe", "mla", "mlp"]
    assert "[megatron] multi_latent_attention specialises attention as mla" in made.layers[0].why
    found = native_arguments(made, here[1])
    assert found.words[:3] == ("--hybrid-layer-pattern", "+E+-", "--multi-latent-attention")
    assert found.groups[-1] == ("--spec", "megatron_seams.runtime.launch", "stack_spec")
    assert "the run is held to the receipt" in found.notes[0]
    assert "without --spec, the trainer builds them without megatron-seams" in found.notes[1]


@pytest.mark.parametrize(
    ("pattern", "tables"),
    [
        ("+-", {"megatron": {"multi_latent_attention": False}}),
        ("M-", {"megatron": {"multi_latent_attention": True}}),
        ("*-", {"megatron": {"multi_latent_attention": True}, "families": {"attention": "gdn"}}),
    ],
)
def test_a_switch_that_contradicts_the_layers_is_refused(
    pattern: str, tables: dict[str, Any], here: tuple[Environment, NativeSettings]
) -> None:
    fault = only(reasons(recipe(pattern, **tables), here[0]), SpecialisationInvalid)
    assert fault.key == "megatron.multi_latent_attention"


def test_a_plan_with_a_seam_names_its_stack_and_what_is_counted_wrongly(
    here: tuple[Environment, NativeSettings],
) -> None:
    found = native_arguments(plan(recipe("K*K", tokens={"K": "kda"}), here[0]), here[1])
    assert found.groups[0] == ("--hybrid-layer-pattern", "M*M")
    assert found.groups[-1] == ("--spec", "megatron_seams.runtime.launch", "stack_spec")
    assert found.notes[0].startswith("seam kda (@acme/layers) builds layers 1, 3, ")
    assert "takes them for 'M' layers" in found.notes[0]
    assert "MEGATRON_SEAMS_RECEIPT" in found.notes[1]


def test_a_shell_keeps_every_word_as_it_is(here: tuple[Environment, NativeSettings]) -> None:
    asked = recipe("*-|*-/*-", megatron=SIZES, parallelism={"pipeline-parallel": 2})
    found = native_arguments(plan(asked, here[0]), here[1])
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {found.for_shell()}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert tuple(done.stdout.splitlines()) == found.words
    assert found.words[:2] == ("--hybrid-layer-pattern", "*-|*-/*-")
    assert ("--pipeline-model-parallel-size", "2") in found.groups


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"add_bias_linear": False}, ("--disable-bias-linear",)),
        ({"add_bias_linear": True}, ()),
        ({"qk_layernorm": True}, ("--qk-layernorm",)),
        ({"qk_layernorm": False}, ()),
        ({"bias_dropout_fusion": False}, ("--no-bias-dropout-fusion",)),
        ({"bias_dropout_fusion": True}, ()),
        ({"attention_softmax_in_fp32": False}, ()),
        ({"vocab_size": 100}, ("--padded-vocab-size", "100")),
        ({"window_size": [127, 0]}, ("--window-size", "(127,0)")),
        ({"moe_layer_freq": [1, 0]}, ("--moe-layer-freq", "([1,0])")),
        ({"moe_layer_freq": 2}, ("--moe-layer-freq", "2")),
        ({"cp_comm_type": "a2a"}, ("--cp-comm-type", "a2a")),
        ({"cp_comm_type": ["p2p", "a2a"]}, ("--cp-comm-type", "p2p", "a2a")),
        ({"cuda_graph_modules": ["attn", "mamba"]}, ("--cuda-graph-modules", "attn", "mamba")),
        ({"offload_modules": ["moe_act"]}, ("--offload-modules", "moe_act")),
        ({"attention_backend": "unfused"}, ("--attention-backend", "unfused")),
        (
            {"mamba_training_ssm_states_dtype": "float32"},
            ("--mamba-training-ssm-states-dtype", "fp32"),
        ),
        ({"bf16": True, "params_dtype": "bfloat16"}, ("--bf16",)),
        ({"deallocate_pipeline_outputs": True}, ()),
        ({"max_sequence_length": 128}, ("--max-position-embeddings", "128")),
        ({"num_query_groups": 2}, ("--group-query-attention", "--num-query-groups", "2")),
        ({"activation_func": "squared_relu"}, ("--squared-relu",)),
        ({"activation_func": "silu", "gated_linear_unit": True}, ("--swiglu",)),
        (
            {"share_embeddings_and_output_weights": False},
            ("--untie-embeddings-and-output-weights",),
        ),
        ({"share_embeddings_and_output_weights": True}, ()),
        ({"layernorm_epsilon": 1e-6}, ("--norm-epsilon", "1e-06")),
        ({"moe_aux_loss_coeff": [0.1, 0.2]}, ("--moe-aux-loss-coeff", "0.1", "0.2")),
    ],
    ids=str,
)
def test_a_setting_becomes_the_flag_that_sets_it(
    settings: dict[str, Any], words: tuple[str, ...], here: tuple[Environment, NativeSettings]
) -> None:
    found = native_arguments(plan(recipe("*-", megatron=settings), here[0]), here[1])
    plain = native_arguments(plan(recipe("*-"), here[0]), here[1])
    added = [word for group in found.groups if group not in plain.groups for word in group]
    # Some are printed without the setting too, since the class's default is not the trainer's.
    assert tuple(added) == words or (not added and words in found.groups)


def test_what_the_recipe_leaves_to_defaults_is_said_where_the_roads_differ(
    here: tuple[Environment, NativeSettings],
) -> None:
    found = words(recipe("+-"), here)
    for group in (
        ("--position-embedding-type", "none"),
        ("--kv-lora-rank", "512"),
        ("--q-lora-rank", "512"),
        ("--normalization", "RMSNorm"),
        ("--rotary-scaling-factor", "40"),
    ):
        assert group == found[found.index(group[0]) :][:2]
    assert "--untie-embeddings-and-output-weights" in found
    # Derived by both in the same way, or printed by neither.
    assert not {"--num-query-groups", "--kv-channels", "--seed", "--num-layers"} & set(found)


def test_a_size_that_the_trainer_derives_otherwise_is_said(
    here: tuple[Environment, NativeSettings],
) -> None:
    gated = {"activation_func": "silu", "gated_linear_unit": True}
    found = words(recipe("*-", megatron=SIZES | gated), here)
    # The class makes it 4 times the width; the trainer, two thirds of that, in steps of 64.
    assert found[found.index("--ffn-hidden-size") + 1] == "256"
    assert "--ffn-hidden-size" not in words(recipe("*-", megatron=SIZES), here)


def test_a_value_that_begins_like_a_flag_is_joined_to_its_own(
    here: tuple[Environment, NativeSettings],
) -> None:
    assert words(recipe("-*"), here)[0] == "--hybrid-layer-pattern=-*"
    assert "--init-method-std=-1.0" in words(recipe("*", megatron={"init_method_std": -1.0}), here)


def test_what_a_run_still_needs_is_apart_from_the_arguments(
    here: tuple[Environment, NativeSettings],
) -> None:
    found = native_arguments(plan(recipe("*-"), here[0]), here[1])
    by_flags = {need.flags: need.key for need in found.needs}
    assert by_flags[("--micro-batch-size",)] is None
    assert by_flags[("--seq-length", "--encoder-seq-length")] is None
    assert by_flags[("--hidden-size",)] == "megatron.hidden_size"
    assert by_flags[("--max-position-embeddings",)] == "megatron.max_sequence_length"
    assert ("--lr",) in by_flags
    known = SIZES | {"max_sequence_length": 128, "vocab_size": 64}
    sized = native_arguments(plan(recipe("*-", megatron=known), here[0]), here[1])
    assert {need.key for need in sized.needs} == {None}
    assert not {flag for need in sized.needs for flag in need.flags} & set(sized.words)


def test_everything_that_no_flag_says_is_refused_at_once(
    here: tuple[Environment, NativeSettings],
) -> None:
    settings = {
        "activation_func": "silu",  # upstream has a flag for the gated form alone
        "params_dtype": "bfloat16",  # its flag is --bf16, which the recipe does not ask for
        "deallocate_pipeline_outputs": False,  # the trainer sets it to true
        "attention_softmax_in_fp32": False,
        "add_qkv_bias": False,  # which add_bias_linear overrules
        "overlap_p2p_comm": True,  # for an interleaved schedule alone
    }
    made = plan(recipe("*-", megatron=settings), here[0])
    with pytest.raises(Refusal) as refused:
        native_arguments(made, here[1])
    assert all(isinstance(reason, NoArgument) for reason in refused.value.reasons)
    defaults = {"attention_softmax_in_fp32"}  # the default of the command line
    assert {reason.subject for reason in refused.value.reasons} == set(settings) - defaults


def test_a_gate_without_its_activation_is_refused_with_what_to_set(
    here: tuple[Environment, NativeSettings],
) -> None:
    made = plan(recipe("*-", megatron={"gated_linear_unit": True}), here[0])
    with pytest.raises(Refusal) as refused:
        native_arguments(made, here[1])
    fault = only(list(refused.value.reasons), NoArgument)
    assert fault.key == "megatron.gated_linear_unit"
    assert 'activation_func = "silu" with gated_linear_unit = true' in fault.next


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("hidden_size", "four", "expected a whole number"),
        ("hidden_size", True, "expected a whole number"),
        ("hidden_size", 64.0, "expected a whole number"),
        ("moe_aux_loss_coeff", "1e-4", "it is text; expected a number or a list"),
        ("add_bias_linear", 1, "expected true or false"),
        ("position_embedding_type", "alibi", "one of learned_absolute, rope"),
        ("activation_func", "mish", "one of gelu, quick_gelu"),
        ("activation_func", ["gelu"], "it is a list; expected one of gelu"),
        ("params_dtype", "int3", "expected"),
        ("window_size", [1, 2, 3], "expected"),
    ],
)
def test_a_value_of_another_type_than_upstreams_is_refused(
    key: str, value: Any, says: str, here: tuple[Environment, NativeSettings]
) -> None:
    fault = only(reasons(recipe("*-", megatron=SIZES | {key: value}), here[0]), RecipeInvalid)
    assert fault.key == f"megatron.{key}"
    assert says in fault.found


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("M/M", {"position_embedding_type": "learned_absolute"}, "MTP", "position_embedding_type"),
    ("D", {"add_bias_linear": False, "apply_rope_fusion": True}, "RoPE", "apply_rope_fusion"),
    ("+", {"num_query_groups": 2}, "mutually exclusive", "num_query_groups"),
    ("M|M", {"num_layers_in_first_pipeline_stage": 1}, "pipe separators", "first_pipeline_stage"),
    ("E", {"num_moe_experts": 4, "moe_latent_size": 0}, "greater than zero", "moe_latent_size"),
]


@pytest.mark.parametrize(("pattern", "settings", "says", "key"), REFUSED)
def test_what_upstreams_trainer_refuses_is_refused_in_its_words(
    pattern: str,
    settings: dict[str, Any],
    says: str,
    key: str,
    here: tuple[Environment, NativeSettings],
) -> None:
    spread = {"pipeline-parallel": 2} if "|" in pattern else {}
    asked = recipe(pattern, megatron=settings, parallelism=spread)
    faults = [each for each in reasons(asked, here[0]) if isinstance(each, UpstreamForbids)]
    assert any(key in str(fault.key) for fault in faults)
    assert "|" in pattern or says in faults[0].found


def test_what_only_a_default_contradicts_is_refused_as_arguments_alone(
    here: tuple[Environment, NativeSettings],
) -> None:
    made = plan(recipe("D", megatron=SIZES), here[0])  # may be given on a command line yet
    with pytest.raises(Refusal) as refused:
        native_arguments(made, here[1])
    fault = only(list(refused.value.reasons), UpstreamForbids)
    assert "add_bias_linear=False" in fault.found
    assert "megatron.add_bias_linear = True (not set)" in fault.asked
    assert fault.key == "megatron.add_bias_linear"


SPARSE = SIZES | {"add_bias_linear": False, "apply_rope_fusion": False}


@pytest.mark.parametrize(
    ("pattern", "settings", "waiting"),
    [
        ("DED-E-", {"dsa_indexer_loss_coeff": 0.01}, "pipeline rank 1 has no layer"),
        ("-E-DED", {"dsa_indexer_loss_coeff": 0.01}, "pipeline rank 0 has no layer"),
        ("DE|D-E-", {"dsa_indexer_loss_coeff": 0.01}, ""),
        ("DED-E-", {"dsa_indexer_loss_coeff": 0.0}, ""),
        ("DED-E-", {}, ""),
        ("-E-E", {"dsa_indexer_loss_coeff": 0.01}, ""),
    ],
)
def test_a_rank_that_the_sum_of_the_indexers_losses_would_wait_for_is_refused(
    pattern: str,
    settings: dict[str, Any],
    waiting: str,
    here: tuple[Environment, NativeSettings],
) -> None:
    sizes = SPARSE | {"num_moe_experts": 2, **settings}
    made = plan(recipe(pattern, megatron=sizes, parallelism={"pipeline-parallel": 2}), here[0])
    if not waiting:
        native_arguments(made, here[1])
        return
    with pytest.raises(Refusal) as refused:
        native_arguments(made, here[1])
    fault = only(list(refused.value.reasons), UpstreamForbids)
    assert waiting in fault.found
    assert fault.key == "megatron.dsa_indexer_loss_coeff"


def test_an_indexer_that_nothing_trains_is_noted(
    here: tuple[Environment, NativeSettings],
) -> None:
    def notes(**settings: Any) -> str:
        made = plan(recipe("D-D", megatron=SPARSE | settings), here[0])
        return "\n".join(native_arguments(made, here[1]).notes)

    assert "nothing trains the indexer of layers 1, 3" in notes()
    assert "indexer" not in notes(dsa_indexer_loss_coeff=0.01)


def test_a_megatron_without_a_trainer_has_no_arguments(
    here: tuple[Environment, NativeSettings],
) -> None:
    bare = NativeSettings(unread=("there is no parser",))
    with pytest.raises(Refusal, match="there is no parser"):
        native_arguments(plan(recipe("*-"), here[0]), bare)


def test_an_older_trainers_flag_for_the_layers_is_named(
    here: tuple[Environment, NativeSettings],
) -> None:
    older = "--hybrid-override-pattern"
    known = here[1].flags["--hybrid-layer-pattern"]
    flags = {older: attrs.evolve(known, names=(older,))}
    with pytest.raises(Refusal, match=f"its flag for the layers is {older}"):
        native_arguments(plan(recipe("*-"), here[0]), NativeSettings(flags=flags))


def test_an_unknown_setting_is_refused_with_names_that_are_only_information() -> None:
    where = read_environment()
    faults = reasons(recipe("*-", megatron={"hiden_size": 8}), where)
    assert "hidden_size" in faults[0].found
    assert "none is applied" in faults[0].found


# --- the command ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "options", "code"),
    [("a\nb", ["--lines"], 2), ("a\nb", [], 0), ("a\x1bb", [], 2), ("a\x1bb", ["--json"], 0)],
)
def test_a_word_that_is_another_one_as_text_is_refused(
    value: str, options: list[str], code: int, tmp_path: Path
) -> None:
    model = toml({"schema": 1, "model": {"name": "x", "pattern": "*-"}})
    file = tmp_path / "model.toml"
    file.write_text(f"{model}[megatron]\ncp_comm_type = {json.dumps(value)}\n")
    done = CliRunner().invoke(cli, ["args", str(file), *options])
    assert done.exit_code == code, done.output
    if code:
        assert "SEAM-A01" in done.stderr
        assert done.stdout == ""
    elif options:
        assert value in json.loads(done.stdout)["arguments"]
    else:
        assert value in shlex.split(done.stdout)


def test_the_command_prints_arguments_alone_on_standard_output(
    repository: Path, tmp_path: Path
) -> None:
    quoted = registry("args", "*-", code=0)
    lines = registry("args", "*-", "--lines", code=0)
    assert shlex.split(quoted.stdout) == lines.stdout.splitlines()
    assert lines.stdout.splitlines()[:2] == ["--hybrid-layer-pattern", "*-"]
    assert "still needed: [megatron.hidden_size], or --hidden-size" in quoted.stderr
    assert "still needed: --micro-batch-size" in quoted.stderr
    assert "still needed: --eval-interval" in quoted.stderr  # 0.19 divides by it, set or not
    schema = json.loads((repository / "docs" / "schema" / "args.schema.json").read_text())
    printed = json.loads(registry("args", "*-", "--json", code=0).stdout)
    jsonschema.validate(printed, schema)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"hybrid_override_pattern": "M-", "hidden_size": 8}))
    taken = registry("args", config, code=0)
    words = shlex.split(taken.stdout)
    assert words[:2] == ["--hybrid-layer-pattern", "M-"]
    assert words[words.index("--hidden-size") + 1] == "8"
    assert "--squared-relu" in words  # what a model with that key has, whatever it says besides
    assert "the rest is read as its" in taken.stderr
    receipt = tmp_path / "receipt.json"
    registry("args", "*-", "--receipt", receipt, code=0)
    registry("verify", receipt, code=0)
