"""Shapes that upstream is moving to: read right, or refused as unknown, and never misread.

The trees are written here, in the shapes that upstream's main branch and its open changes have.
"""

import ast
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from megatron_seams.cli import cli
from megatron_seams.errors import SurfaceUnknown, UnknownToken
from megatron_seams.planning.environment import read_environment
from megatron_seams.upstream.locate import open_megatron
from megatron_seams.upstream.surface import NativeSurface, read_surface
from megatron_texts import write_folder
from seam_support import plan, reasons, recipe

SCHEMAS = Path(__file__).resolve().parent.parent / "docs" / "schema"
CORE = "megatron/core/models/hybrid"
ALLOCATION = f"{CORE}/hybrid_layer_allocation.py"
STACK = f"{CORE}/hybrid_block.py"
CONFIGS = "megatron/core/configs.py"

#: Constant -> letter and slot, as upstream's main has them.
MAIN = {
    "MAMBA": ("M", "mamba_layer"),
    "GDN": ("G", "gdn_layer"),
    "ATTENTION": ("*", "attention_layer"),
    "DS_ATTENTION": ("D", "dsa_layer"),
    "MLA": ("+", "mla_layer"),
    "MLP": ("-", "mlp_layer"),
    "MOE": ("E", "moe_layer"),
}
#: What is proposed beside them: compressed, window and delta attention.
FURTHER = {
    "CSA": ("C", "csa_layer"),
    "HCA": ("H", "hca_layer"),
    "WINDOW": ("W", "window_layer"),
    "KDA": ("K", "kda_layer"),
}
SEPARATORS = {"PIPE": "|", "MTP_SEPARATOR": "/"}
RULE = (
    "Symbols.ATTENTION in segment and (Symbols.DS_ATTENTION in segment or Symbols.MLA in segment)"
)
LISTS = """
def validate_segment_layers(segment):
    layer_type_list = list(segment)
    for layer_char in layer_type_list:
        if layer_char not in Symbols.VALID_LAYERS:
            raise ValueError(f"{layer_char} is no layer")
    if RULE:
        raise ValueError("not both")
    return layer_type_list
"""
LISTS_CONFIGS = """
def validate_segment_layers(segment, config):
    _check(segment)
    made = Configs()
    for symbol in segment:
        ADDED
    return made


def _check(segment):
    if RULE:
        raise ValueError("not both")
"""
CLASS_OF_COPY = """\
copied = deepcopy(config)
        copied.__class__ = LAYER_SYMBOL_TO_CONFIG_CLASS[symbol]
        made.append(copied)"""
FROM_CONFIG = "made.append(LAYER_SYMBOL_TO_CONFIG_CLASS[symbol].from_config(config))"
STACK_TEXT = """
import copy
from contextlib import nullcontext
from dataclasses import dataclass

from torch import nn

IMPORTS
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.other import Wrapped
from megatron.core.transformer.spec_utils import build_module


@dataclass
class HybridStackSubmodules:
    SLOTS


class HybridStack(MegatronModule):
    def __init__(self, config, submodules, LISTED=None, pp_layer_offset=0, pg_collection=None):
        super().__init__(config=config)
        self.LISTED = LISTED
        self.layers = nn.ModuleList()
        for i, KEY in enumerate(self.LISTED):
            layer_number = i + 1 + pp_layer_offset
            with nullcontext():
                CHAIN
                else:
                    raise ValueError("no such layer")
            AFTER
            self.layers.append(layer)
"""
BUILT = """\
layer = build_module(
                        submodules.SLOT, config=self.config, layer_number=layer_number, NUMBERED
                    )"""
RESPECIALISED = """\
spec = submodules.SLOT
                    if self.config.experimental_attention_variant == "other":
                        from megatron.core.other import Other

                        spec = copy.deepcopy(spec)
                        spec.submodules.self_attention.module = Other
                    layer = build_module(
                        spec, config=self.config, layer_number=layer_number, NUMBERED
                    )"""


def vocabulary(
    layers: Mapping[str, tuple[str, str]],
    *,
    structural: Mapping[str, str] = SEPARATORS,
    sets: Iterable[str] = (),
    rule: str = RULE,
    lists: str = LISTS,
) -> str:
    """The module with the symbols."""
    letters = {name: letter for name, (letter, _) in layers.items()} | dict(structural)
    members = [f"{name} = {letter!r}" for name, letter in letters.items()]
    members += [f"VALID_LAYERS = {{{', '.join(layers)}}}", *sets]
    return "class Symbols:\n    " + "\n    ".join(members) + "\n\n" + lists.replace("RULE", rule)


def stack(
    layers: Mapping[str, tuple[str, str]],
    *,
    bodies: Mapping[str, str] | None = None,
    after: str = "pass",
    classes: Mapping[str, str] | None = None,
) -> str:
    """The module with the loop; ``classes`` are what it asks for in place of symbols."""
    chain = []
    for name, (_, slot) in layers.items():
        test = f"layer_type == LayerSymbols.{name}"
        if classes:
            test = f"isinstance(layer_config, {classes[name]})"
        body = (bodies or {}).get(name, BUILT).replace("SLOT", slot)
        offset = "pp_layer_offset=pp_layer_offset" if name == "MAMBA" else "add_layer_offset=False"
        body = body.replace("NUMBERED", offset)
        chain.append(f"if {test}:\n                    {body}")
    home = "megatron.core.models.hybrid.hybrid_layer_allocation"
    imports = f"from {home} import Symbols as LayerSymbols"
    if classes:
        imports = f"from megatron.core.configs import {', '.join(sorted(set(classes.values())))}"
    text = STACK_TEXT
    for name, value in {
        "IMPORTS": imports,
        "SLOTS": "\n    ".join(f"{slot}: object = None" for _, slot in layers.values()),
        "CHAIN": "\n                el".join(chain),
        "AFTER": after,
        "LISTED": "layer_config_list" if classes else "layer_type_list",
        "KEY": "layer_config" if classes else "layer_type",
    }.items():
        text = text.replace(name, value)
    return text


def tree(folder: Path, allocation: str, loop: str, configs: str | None = None) -> Path:
    """A Megatron of these texts, each of which is Python."""
    version = 'MAJOR = 0\nMINOR = 20\nPATCH = 0\nPRE_RELEASE = ""\n'
    texts = {"megatron/core/package_info.py": version, ALLOCATION: allocation, STACK: loop}
    if configs is not None:
        texts[CONFIGS] = configs
    for text in texts.values():
        ast.parse(text)
    return write_folder(folder, texts)


def read(path: Path) -> NativeSurface:
    return read_surface(open_megatron(path))


def surface(path: Path, *, code: int) -> dict[str, Any]:
    """``registry surface --json``, which is as published whatever it says."""
    done = CliRunner().invoke(cli, ["surface", str(path), "--json"])
    assert done.exit_code == code, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    schema = json.loads((SCHEMAS / "surface.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(found)
    return found


def refuse(path: Path) -> str:
    """Hold it to a refusal with nothing native left; what was found is returned."""
    (fault,) = read_environment(path).faults
    assert isinstance(fault, SurfaceUnknown)
    assert read_environment(path).surface.symbols == ()
    assert surface(path, code=3)["outcome"] == "refused"
    return fault.found


# --- what main has today ----------------------------------------------------------------------


def test_a_slot_that_is_specialised_before_it_is_built_is_still_that_slot(tmp_path: Path) -> None:
    loop = stack(MAIN, bodies={"GDN": RESPECIALISED})
    found = read(tree(tmp_path, vocabulary(MAIN), loop))
    assert {s.constant: (s.symbol, s.slot) for s in found.symbols} == MAIN
    gdn = found.of_constant("GDN")
    assert gdn is not None
    assert gdn.keywords == ("config", "layer_number", "add_layer_offset")
    assert found.unmapped() == ()


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("spec = copy.deepcopy(spec)", "spec = copy.deepcopy(submodules.mlp_layer)"),
        ("spec = copy.deepcopy(spec)", "spec = copy.deepcopy(other)"),
        ("spec = copy.deepcopy(spec)", "spec = copied(spec)"),
        ("spec = submodules.SLOT\n", "spec = self.submodules.SLOT\n"),
        ("spec.submodules.self_attention.module = Other", "spec.module = submodules.moe_layer"),
        ("spec.submodules.self_attention.module = Other", "other.module = Other"),
        ("spec.submodules.self_attention.module = Other", "layer_type = Other"),
        ("spec.submodules.self_attention.module = Other", "change(spec)"),
        ("spec.submodules.self_attention.module = Other", "copied(spec).module = Other"),
        ("spec = submodules.SLOT\n", "spec = others.SLOT\n"),
        ("import Other", "import Other as build_module"),
        (" spec, config", " spec or submodules.mlp_layer, config"),
        (" spec, config", " other, config"),
    ],
)
def test_a_local_name_that_may_be_another_slots_is_refused(
    line: str, instead: str, tmp_path: Path
) -> None:
    body = RESPECIALISED.replace(line, instead)
    assert body != RESPECIALISED
    refuse(tree(tmp_path, vocabulary(MAIN), stack(MAIN, bodies={"GDN": body})))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("submodules.mlp_layer, config", "others.mlp_layer, config"),
        ("layer_type == LayerSymbols.MLP", "layer_type == Others.MLP"),
        ("layer_type == LayerSymbols.MLP", "pp_layer_offset == LayerSymbols.MLP"),
        ("import Symbols as LayerSymbols", "import Letters as LayerSymbols"),
        ("pg_collection=None):", "pg_collection=None, LayerSymbols=None):"),
        ("self, config, submodules, ", "self, config, "),
        ("def __init__(", "def build("),
        ("def __init__(", "__init__ = other\n\n    def build("),
        ("class HybridStack(", "class OtherStack("),
        ("class HybridStack(", "@other\nclass HybridStack("),
        ("class HybridStack(", "HybridStack = Other\n\n\nclass HybridStack("),
        ("class HybridStackSubmodules:", "class HybridStackParts:"),
        ("class HybridStackSubmodules:", "class HybridStackSubmodules(Parts):"),
        ("class HybridStackSubmodules:", "class HybridStackSubmodules(metaclass=Parts):"),
        ("class HybridStackSubmodules:", "@other\nclass HybridStackSubmodules:"),
        ("            pass\n", "            layer += other\n"),
        ("            pass\n", "            layer, _ = other(layer)\n"),
        ("            pass\n", "            del layer\n"),
    ],
)
def test_a_stack_of_another_shape_is_refused(old: str, new: str, tmp_path: Path) -> None:
    loop = stack(MAIN)
    assert old in loop
    refuse(tree(tmp_path, vocabulary(MAIN), loop.replace(old, new, 1)))


# --- further symbols --------------------------------------------------------------------------


def test_symbols_that_no_family_stands_for_are_read_and_reported(tmp_path: Path) -> None:
    layers = MAIN | FURTHER
    path = tree(tmp_path, vocabulary(layers), stack(layers))
    document = surface(path, code=1)
    rows = {row["constant"]: row for row in document["surface"]["symbols"]}
    assert {name: (row["symbol"], row["slot"]) for name, row in rows.items()} == layers
    assert {name for name, row in rows.items() if row["family"] is None} == set(FURTHER)
    assert [finding["subject"] for finding in document["findings"]] == list(FURTHER)
    assert {finding["code"] for finding in document["findings"]} == {"SEAM-S04"}


def test_an_unmapped_symbol_spells_no_layer_and_the_others_stay_native(tmp_path: Path) -> None:
    layers = MAIN | FURTHER
    found = read_environment(tree(tmp_path, vocabulary(layers), stack(layers)))
    assert [layer.provider.symbol for layer in plan(recipe("MG+E"), found).layers] == list("MG+E")
    for letter, _ in FURTHER.values():
        assert {type(reason) for reason in reasons(recipe(letter), found)} == {UnknownToken}


def test_a_rule_over_a_named_set_of_symbols_is_read(tmp_path: Path) -> None:
    layers = MAIN | FURTHER
    text = vocabulary(
        layers,
        sets=["LATENT = {MLA, DS_ATTENTION, CSA, HCA, WINDOW}"],
        rule="Symbols.ATTENTION in segment and any(s in segment for s in Symbols.LATENT)",
    )
    found = read(tree(tmp_path, text, stack(layers)))
    assert found.forbidden({"ATTENTION", "HCA"}) == ("not both",)
    assert found.forbidden({"ATTENTION", "MLA", "MAMBA"}) == ("not both",)
    assert found.forbidden({"ATTENTION", "KDA"}) == ()
    assert found.forbidden({"HCA", "MLA"}) == ()


def test_a_set_that_names_more_than_symbols_is_refused(tmp_path: Path) -> None:
    text = vocabulary(MAIN, sets=['LATENT = {MLA, "C"}'])
    assert "LATENT" in refuse(tree(tmp_path, text, stack(MAIN)))


@pytest.mark.parametrize(
    "rule",
    [
        "Symbols.ATTENTION in segment and any(s in mtp for s in Symbols.LATENT)",
        "Symbols.ATTENTION in segment and any(s in segment for s in Symbols.OTHER)",
        "Symbols.ATTENTION in segment and any(s in segment for s in Symbols.LATENT if s)",
        "Symbols.ATTENTION in segment and any(t in segment for s in Symbols.LATENT)",
        "Symbols.ATTENTION in segment and all(s in segment for s in Symbols.LATENT)",
        "Symbols.ATTENTION in segment and any(s not in segment for s in Symbols.LATENT)",
        "Symbols.LATENT & set(segment)",
    ],
)
def test_a_rule_over_a_set_of_another_shape_is_refused(rule: str, tmp_path: Path) -> None:
    text = vocabulary(MAIN, sets=["LATENT = {MLA, DS_ATTENTION}"], rule=rule)
    assert "not understood" in refuse(tree(tmp_path, text, stack(MAIN)))


def test_a_layer_that_is_wrapped_whatever_it_is_stays_its_slots(tmp_path: Path) -> None:
    wrapped = (
        "if self.config.enable_hyper_connections:\n                layer = Wrapped(layer=layer)"
    )
    found = read(tree(tmp_path, vocabulary(MAIN), stack(MAIN, after=wrapped)))
    assert {s.constant: (s.symbol, s.slot) for s in found.symbols} == MAIN


# --- brackets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GROUP_START", "FUSION_START", "LEFT_BRACKET"])
def test_a_structural_character_that_is_not_known_is_refused_and_named(
    name: str, tmp_path: Path
) -> None:
    text = vocabulary(MAIN, structural=SEPARATORS | {name: "["})
    assert f"{name} ('[')" in refuse(tree(tmp_path, text, stack(MAIN)))


def test_a_bracket_among_the_layers_that_nothing_builds_is_refused(tmp_path: Path) -> None:
    text = vocabulary(MAIN | {"GROUP_START": ("[", "none")})
    refuse(tree(tmp_path, text, stack(MAIN)))


@pytest.mark.parametrize("test", ["is_layer_group(layer_type)", "len(layer_type) > 1"])
@pytest.mark.parametrize("built", ["HybridStack(config, submodules)", "fused(layer_type)"])
def test_a_loop_that_builds_groups_is_refused(test: str, built: str, tmp_path: Path) -> None:
    first = f"if {test}:\n                    layer = {built}\n                el"
    loop = stack(MAIN)
    changed = loop.replace(
        "if layer_type == LayerSymbols.MAMBA", first + "if layer_type == LayerSymbols.MAMBA"
    )
    assert changed != loop
    refuse(tree(tmp_path, vocabulary(MAIN), changed))


def test_a_list_of_groups_is_refused(tmp_path: Path) -> None:
    groups = LISTS.replace("list(segment)", "_groups(segment)")
    assert groups != LISTS
    refuse(tree(tmp_path, vocabulary(MAIN, lists=groups), stack(MAIN)))


# --- one configuration for each layer ---------------------------------------------------------

CLASSES = {name: f"{name.title().replace('_', '')}LayerConfig" for name in MAIN}
TABLE = "LAYER_SYMBOL_TO_CONFIG_CLASS"


def table(classes: Mapping[str, str], added: str = CLASS_OF_COPY) -> str:
    """The module with the symbols, and which class is which symbol's."""
    names = ", ".join(sorted(set(classes.values())))
    rows = ", ".join(f"Symbols.{name}: {cls}" for name, cls in classes.items())
    text = vocabulary(MAIN, lists=LISTS_CONFIGS.replace("ADDED", added))
    imports = (
        "from megatron.core.transformer.transformer_config import TransformerConfig\n"
        f"from megatron.core.configs import {names}\n"
    )
    return f"{imports}\n\n{text}\n\n{TABLE} = {{{rows}}}\n"


def config_classes(bases: Mapping[str, str] | None = None) -> str:
    bases = bases or {}
    return "".join(
        f"class {cls}({bases.get(cls, 'TransformerConfig')}):\n    pass\n\n\n"
        for cls in CLASSES.values()
    )


@pytest.mark.parametrize("added", [CLASS_OF_COPY, FROM_CONFIG])
def test_a_stack_that_asks_for_configurations_is_read_by_their_table(
    added: str, tmp_path: Path
) -> None:
    loop = stack(MAIN, classes=CLASSES, bodies={"GDN": RESPECIALISED})
    found = read(tree(tmp_path, table(CLASSES, added), loop, config_classes()))
    assert {s.constant: (s.symbol, s.slot) for s in found.symbols} == MAIN
    assert found.symbols[0].keywords == ("config", "layer_number", "pp_layer_offset")
    assert found.forbidden({"ATTENTION", "MLA"}) == ("not both",)


def test_the_order_of_the_table_does_not_matter(tmp_path: Path) -> None:
    reordered = dict(sorted(CLASSES.items()))
    loop = stack(MAIN, classes=CLASSES)
    found = read(tree(tmp_path, table(reordered), loop, config_classes()))
    assert {s.constant: (s.symbol, s.slot) for s in found.symbols} == MAIN


def test_the_digest_covers_the_classes_that_the_reading_relies_on(tmp_path: Path) -> None:
    loop = stack(MAIN, classes=CLASSES)
    first = read(tree(tmp_path / "a", table(CLASSES), loop, config_classes()))
    second = read(tree(tmp_path / "b", table(CLASSES), loop, config_classes() + "#"))
    assert first.digest != second.digest


def test_one_class_for_two_symbols_is_refused(tmp_path: Path) -> None:
    # So upstream tells compressed attention of two rates apart: by a field, not by the class.
    shared = CLASSES | {"MLA": CLASSES["DS_ATTENTION"]}
    loop = stack(MAIN, classes=shared)
    found = refuse(tree(tmp_path, table(shared), loop, config_classes()))
    assert "stands for two symbols" in found


@pytest.mark.parametrize("base", [CLASSES["ATTENTION"], "Between", "kinds.TransformerConfig"])
def test_a_class_that_may_be_another_layers_too_is_refused(base: str, tmp_path: Path) -> None:
    text = config_classes({CLASSES["MLA"]: base})
    found = refuse(tree(tmp_path, table(CLASSES), stack(MAIN, classes=CLASSES), text))
    assert "derives from" in found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f"Symbols.MLA: {CLASSES['MLA']}", f"'+': {CLASSES['MLA']}"),
        (f"Symbols.MLA: {CLASSES['MLA']}", f"Symbols.MLA: made({CLASSES['MLA']})"),
        (f"{TABLE} = {{", f"{TABLE} = {{**OTHERS, "),
        (f"\n{TABLE} = ", f"\n{TABLE} = OTHERS\n{TABLE} = "),
        (f"{TABLE}[symbol]", f"{TABLE}[ALIASES[symbol]]"),
        ("for symbol in segment:", "for symbol in expanded(segment):"),
        ("return made", "return made[::-1]"),
        ("_check(segment)\n    made", "segment = expanded(segment)\n    made"),
        ("deepcopy(config)\n", "deepcopy(config)\n        symbol = ALIASES[symbol]\n"),
        ("from megatron.core.configs import", "from megatron.core.others import"),
        (f"Symbols.MLA: {CLASSES['MLA']}, ", ""),
        (f"\n{TABLE} = {{", f"\n{TABLE} = dict() | {{"),
        ("copied.__class__", "config.__class__"),
        ("copied.__class__ = LAYER_SYMBOL_TO_CONFIG_CLASS", "copied.__class__ = OTHERS"),
        ("made.append(copied)", "made.append(config)"),
        ("made.append(copied)", "others.append(copied)"),
        ("return made", "return others"),
        ("for symbol in segment:", "for symbol in others:"),
        ("for symbol in segment:", "for symbol in config:"),
        ("_check(segment)\n    made", "_check(segment := expanded(segment))\n    made"),
        ("_check(segment)\n    made", "if config:\n        return config\n    made"),
        ("class Symbols:", f"{CLASSES['MLA']} = {CLASSES['MLP']}\n\n\nclass Symbols:"),
        (f"import {CLASSES['ATTENTION']}, ", f"import Other as {CLASSES['ATTENTION']}, "),
    ],
)
def test_a_table_of_another_shape_is_refused(old: str, new: str, tmp_path: Path) -> None:
    text = table(CLASSES)
    assert old in text
    changed = text.replace(old, new, 1)
    refuse(tree(tmp_path, changed, stack(MAIN, classes=CLASSES), config_classes()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (FROM_CONFIG, FROM_CONFIG.replace("CLASS[symbol]", "CLASS[others]")),
        (FROM_CONFIG, FROM_CONFIG.replace("made.append", "others.append")),
        (FROM_CONFIG, FROM_CONFIG.replace(TABLE, "OTHERS")),
        (FROM_CONFIG, FROM_CONFIG.replace("from_config", "like")),
    ],
)
def test_configurations_that_are_made_otherwise_are_refused(
    old: str, new: str, tmp_path: Path
) -> None:
    text = table(CLASSES, FROM_CONFIG)
    assert old in text
    changed = text.replace(old, new, 1)
    refuse(tree(tmp_path, changed, stack(MAIN, classes=CLASSES), config_classes()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f"class {CLASSES['MLA']}(", "class Other("),
        (f"class {CLASSES['MLA']}(TransformerConfig)", f"class {CLASSES['MLA']}"),
        (f"class {CLASSES['MLA']}(TransformerConfig", f"class {CLASSES['MLA']}(metaclass=Kinds"),
        (
            f"class {CLASSES['MLA']}(TransformerConfig",
            f"class {CLASSES['MLA']}(TransformerConfig, metaclass=Kinds",
        ),
        ("class", f"{CLASSES['MLA']} = Other\n\n\nclass"),
    ],
)
def test_a_class_of_another_shape_is_refused(old: str, new: str, tmp_path: Path) -> None:
    text = config_classes()
    assert old in text
    loop = stack(MAIN, classes=CLASSES)
    refuse(tree(tmp_path, table(CLASSES), loop, text.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f"isinstance(layer_config, {CLASSES['MLA']})", "isinstance(layer_config, Other)"),
        (f"layer_config, {CLASSES['MLA']})", f"layer_config, ({CLASSES['MLA']}, Other))"),
        (f"layer_config, {CLASSES['MLA']})", f"config, {CLASSES['MLA']})"),
        ("megatron.core.configs import", "megatron.core.others import"),
        ("class HybridStack(", f"{CLASSES['MLA']} = {CLASSES['MLP']}\n\n\nclass HybridStack("),
    ],
)
def test_a_loop_over_configurations_of_another_shape_is_refused(
    old: str, new: str, tmp_path: Path
) -> None:
    loop = stack(MAIN, classes=CLASSES)
    assert old in loop
    refuse(tree(tmp_path, table(CLASSES), loop.replace(old, new, 1), config_classes()))


def test_a_module_without_symbols_of_its_own_is_refused(tmp_path: Path) -> None:
    # Where the letters live elsewhere, what is there is not read.
    text = "from megatron.core.models.hybrid.layers import utils\n\nSymbols = utils.Symbols\n"
    refuse(tree(tmp_path, text, stack(MAIN, classes=CLASSES)))


def test_a_stack_that_is_given_configurations_alone_is_refused(tmp_path: Path) -> None:
    loop = stack(MAIN).replace("layer_type_list", "hybrid_layer_config_list")
    refuse(tree(tmp_path, vocabulary(MAIN), loop))


def test_the_published_schema_takes_no_unknown_key(tmp_path: Path) -> None:
    document = surface(tree(tmp_path, vocabulary(MAIN), stack(MAIN)), code=0)
    schema = json.loads((SCHEMAS / "surface.schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    document["surface"]["colour"] = "red"
    assert not validator.is_valid(document)
