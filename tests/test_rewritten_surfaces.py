"""Published releases that were rewritten: a source of another shape is refused, never guessed."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from megatron_releases import wheel
from megatron_seams.cli import cli
from megatron_seams.errors import SurfaceUnknown
from megatron_seams.planning.environment import read_environment
from megatron_texts import described, home, texts_of, write_wheel
from seam_support import registry

pytestmark = pytest.mark.published

Change = Callable[[str], str]
IF = "                if layer_type == LayerSymbols.MAMBA:\n"
MLP = "                elif layer_type == LayerSymbols.MLP:\n"
APPEND = "            self.layers.append(layer)\n"


def put(old: str, new: str) -> Change:
    """Replace the first of ``old``, which must be there."""

    def change(text: str) -> str:
        assert old in text, old
        return text.replace(old, new, 1)

    return change


def sub(pattern: str, new: str) -> Change:
    """Replace the first match of a pattern, which must match."""

    def change(text: str) -> str:
        changed, count = re.subn(pattern, lambda found: found.expand(new), text, count=1)
        assert count == 1, pattern
        return changed

    return change


def before(anchor: str, line: str) -> Change:
    """Put a line before another, as deep in as that one."""
    depth = " " * (len(anchor) - len(anchor.lstrip()))
    return put(anchor, f"{depth}{line}\n{anchor}")


def after(anchor: str, line: str) -> Change:
    depth = " " * (len(anchor) - len(anchor.lstrip()))
    return put(anchor, f"{anchor}{depth}{line}\n")


def appended(line: str) -> Change:
    return lambda text: f"{text}\n\n{line}\n"


def rule(condition: str, text: str = "pattern") -> Change:
    return appended(f"def _check({text}):\n    if {condition}:\n        raise ValueError('no')")


LOOP = r"        for i, layer_type in enumerate\((self\.)?layer_type_list\):\n"
CHAIN = re.escape(IF) + r"(.*\n)*?(?= {12}self\.layers\.append)"
CASES = (
    "                match layer_type:\n"
    "                    case LayerSymbols.MAMBA:\n"
    "                        layer = build_module(submodules.mamba_layer, config=self.config)\n"
)
INIT = r"        super\(\).__init__\(config=config\)\n"
BUILD_MLP = r"layer = build_module\(\n\s+submodules\.mlp_layer,"
STACK = r"(?<=\n)class (Mamba|Hybrid)Stack\("
LISTED = r"    layer_type_list = list\((\w+)\)\n"

#: Rewrites of the stack's module, each of which builds something else, or may.
STACKS: dict[str, Change] = {
    "a table of builders": sub(
        CHAIN, "                layer = build_module(BUILDERS[layer_type], config=self.config)\n"
    ),
    "a match": sub(CHAIN, CASES),
    "a branch builds a computed slot": sub(
        BUILD_MLP, 'layer = build_module(getattr(submodules, "mlp" + "_layer"),'
    ),
    "a branch does more": after(MLP, "    self.count = i"),
    "a branch builds twice": after(MLP, "    extra = build_module(submodules.mamba_layer)"),
    "keywords come from a mapping": sub(BUILD_MLP, r"\g<0> **common,"),
    "a positional argument": sub(BUILD_MLP, r"\g<0> common,"),
    "a slot is rebound before the chain": before(
        IF, "submodules.mlp_layer = submodules.mamba_layer"
    ),
    "a slot is rebound by name": before(
        IF, 'setattr(submodules, "mlp_layer", submodules.mamba_layer)'
    ),
    "the submodules are rebound in the loop": before(IF, "submodules = swapped(submodules)"),
    "the submodules are rebound before it": sub(INIT, r"\g<0>        submodules = other\n"),
    "a method swaps the submodules": lambda text: sub(
        INIT, r"\g<0>        submodules = self._swapped(submodules)\n"
    )(
        put(
            "    def set_input_tensor(",
            "    def _swapped(self, submodules):\n"
            "        submodules = copy.deepcopy(submodules)\n"
            "        submodules.mlp_layer = submodules.mamba_layer\n"
            "        return submodules\n\n"
            "    def set_input_tensor(",
        )(text)
    ),
    "a method copies other submodules": lambda text: sub(
        INIT, r"\g<0>        submodules = self._swapped(submodules)\n"
    )(
        put(
            "    def set_input_tensor(",
            "    def _swapped(self, submodules):\n"
            "        submodules = copy.deepcopy(OTHER)\n"
            "        return submodules\n\n"
            "    def set_input_tensor(",
        )(text)
    ),
    "a method returns other submodules": lambda text: sub(
        INIT, r"\g<0>        submodules = self._swapped(submodules)\n"
    )(
        put(
            "    def set_input_tensor(",
            "    def _swapped(self, submodules):\n"
            "        submodules = copy.deepcopy(submodules)\n"
            "        if self.config.fp8:\n"
            "            return OTHER\n"
            "        return submodules\n\n"
            "    def set_input_tensor(",
        )(text)
    ),
    "a function may change the submodules": sub(INIT, r"\g<0>        swap(submodules)\n"),
    "the layer is remapped": before(IF, "layer_type = ALIASES.get(layer_type, layer_type)"),
    "a context renames the layer": sub(
        r"                if layer_type == LayerSymbols\.MAMBA:\n",
        "                with aliased(layer_type) as layer_type:\n                    pass\n\\g<0>",
    ),
    "a keyword renames the layer": sub(BUILD_MLP, r'\g<0> depth=(layer_type := "E"),'),
    "the loop skips a symbol": before(
        IF, "if layer_type == LayerSymbols.MLP:\n                    continue"
    ),
    "the loop ends early": before(IF, "if i > 3:\n                    break"),
    "the loop is over something else": sub(
        LOOP, "        for i, layer_type in enumerate(remapped(layer_type_list)):\n"
    ),
    "the loop has another part": sub(
        r"( {12})self\.layers\.append\(layer\)\n",
        r"""\g<0>
        else:
            self.layers.append(build_module(submodules.mlp_layer))
""",
    ),
    "the list is remapped": sub(
        LOOP, r"        layer_type_list = remapped(layer_type_list)\n\g<0>"
    ),
    "the list of the stack is another": sub(
        LOOP, r"        self.layer_type_list = [aliased(t) for t in layer_type_list]\n\g<0>"
    ),
    "the list is reversed in place": sub(LOOP, r"        layer_type_list.reverse()\n\g<0>"),
    "the list is changed in place": sub(LOOP, r"        layer_type_list[0] = 'E'\n\g<0>"),
    "the list is changed by a function": sub(LOOP, r"        remap(layer_type_list)\n\g<0>"),
    "a second chain after the first": before(
        APPEND,
        "if layer_type == LayerSymbols.MLP:\n"
        "                layer = build_module(submodules.mamba_layer, config=self.config)",
    ),
    "a chain of its own for other stacks": before(
        IF,
        "if self.is_mtp_layer:\n"
        "                    if layer_type == LayerSymbols.MLP:\n"
        "                        layer = build_module(submodules.mamba_layer)",
    ),
    "another layer after the chain": before(APPEND, "layer = OTHER[i]"),
    "one symbol's layer is wrapped": before(
        APPEND,
        "if layer_type == LayerSymbols.MLP:\n                layer = Wrapped(layer)",
    ),
    "layers are built elsewhere too": put(
        "    def set_input_tensor(",
        "    def rebuild(self, submodules):\n"
        "        self.layers[0] = build_module(submodules.mlp_layer)\n\n"
        "    def set_input_tensor(",
    ),
    "the layers are replaced": sub(
        r"\n        # Required for activation recomputation\n",
        r"\n        self.layers = nn.ModuleList(reversed(self.layers))\g<0>",
    ),
    "two branches for one symbol": put(
        MLP, MLP + "                    layer = build_module(submodules.mamba_layer)\n" + MLP
    ),
    "a branch has a second condition": put(MLP, MLP.replace(":\n", " and i:\n")),
    "a branch is for two symbols": put(
        MLP,
        MLP.replace("== LayerSymbols.MLP", "in (LayerSymbols.MLP, LayerSymbols.MLP)"),
    ),
    "a local name is for two slots": sub(
        BUILD_MLP,
        "spec = submodules.mlp_layer\n"
        "                    spec = submodules.mamba_layer\n"
        "                    layer = build_module(\n                        spec,",
    ),
    "a local name is another slot's part": sub(
        BUILD_MLP,
        "spec = submodules.mlp_layer\n"
        "                    spec.module = submodules.mamba_layer\n"
        "                    layer = build_module(\n                        spec,",
    ),
    "a local name is replaced under a condition": sub(
        BUILD_MLP,
        "spec = submodules.mlp_layer\n"
        "                    if self.config.fp8:\n"
        "                        spec = OTHER\n"
        "                    layer = build_module(\n                        spec,",
    ),
    "the chain lets others pass": sub(
        r"(assert False, |raise ValueError\()\"unexpected layer_type\"\)?",
        'assert layer_type, "unexpected layer_type"',
    ),
    "the symbols are a subclass": lambda text: sub(
        STACK, 'class LayerSymbols(Letters):\n    MLP = "E"\n\n\n\\g<0>'
    )(sub(r"Symbols as LayerSymbols", "Symbols as Letters")(text)),
    "the symbols are rebound": sub(STACK, r"LayerSymbols = OTHER\n\n\n\g<0>"),
    "the symbols are from elsewhere": sub(
        r"from megatron\.core\.\S+ import Symbols as LayerSymbols",
        "from megatron.core.letters import Symbols as LayerSymbols",
    ),
    "a symbol is set": appended('LayerSymbols.MLP = "E"'),
    "a symbol is set by name": appended('setattr(LayerSymbols, "MLP", "E")'),
    "the builder is its own": sub(STACK, "def build_module(*a, **k):\n    pass\n\n\n\\g<0>"),
    "the builder is from elsewhere": put(
        "from megatron.core.transformer.spec_utils import", "from megatron.core.other import"
    ),
    "names come from a star": appended("from megatron.core.other import *"),
    "the stack is defined again": lambda text: (
        text + re.sub(r"(?s)^.*?(?=\nclass (Mamba|Hybrid)Stack\()", "\n", text)
    ),
    "the constructor is replaced": lambda text: appended(
        f"{re.search(r'class (Mamba|Hybrid)Stack', text)[0][6:]}.__init__ = patched"
    )(text),
    "the constructor is decorated": put("    def __init__(\n", "    @patched\n    def __init__(\n"),
    "the constructor is given twice": put(
        "    def set_input_tensor(", "    __init__ = patched\n\n    def set_input_tensor("
    ),
    "a slot is a property": sub(
        r"    mlp_layer: .*\n",
        r"\g<0>\n    @property\n    def moe(self):\n        return self.mlp_layer\n\n",
    ),
    "a slot has another's name": sub(
        r"    mlp_layer: .*\n", "    feed_forward_layer: object = None\n"
    ),
}
#: Rewrites of the module with the symbols, each of which means something else, or may.
ALLOCATIONS: dict[str, Change] = {
    "a symbol is computed": put('MLP = "-"', "MLP = chr(45)"),
    "a symbol is annotated": put('MLP = "-"', 'MLP: str = "-"'),
    "a symbol has two names": put('MLP = "-"', 'MLP = FEED = "-"'),
    "a symbol is given twice": put('MLP = "-"', 'MLP = "-"\n    MLP = "F"'),
    "a symbol is a method": put('MLP = "-"', 'MLP = "-"\n\n    def MLP(self):\n        pass\n'),
    "two symbols are one letter": put('MLP = "-"', 'MLP = "M"'),
    "a symbol is two letters": put('MLP = "-"', 'MLP = "--"'),
    "the layers are computed": sub(
        r"(VALID(?:_LAYERS)?) = \{(.*)\}", r"\1 = {name for name in (\2)}"
    ),
    "the layers are a union": sub(r"(VALID(?:_LAYERS)?) = (\{.*\})", r"\1 = \2 | {MLP}"),
    "the layers are given twice": sub(
        r"    (VALID(?:_LAYERS)?) = (\{.*\})", r"    VALID_LAYERS = \2\n    VALID = {MLP}"
    ),
    "a layer is no symbol": sub(r"(VALID(?:_LAYERS)?) = \{", r"\1 = {OTHER, "),
    "the class has a base": put("class Symbols:", "class Symbols(Letters):"),
    "the class is made otherwise": put("class Symbols:", "class Symbols(metaclass=Letters):"),
    "the class is decorated": put("class Symbols:", "@changed\nclass Symbols:"),
    "the class changes itself": put(
        'MLP = "-"', 'MLP = "-"\n\n    def change(self):\n        type(self).MLP = "E"\n'
    ),
    "a symbol is set afterwards": appended('Symbols.MLP = "E"'),
    "a symbol is set in the namespace": put('MLP = "-"', 'MLP = "-"\n    vars()["MLP"] = "E"'),
    "the set of layers is set afterwards": appended("Symbols.VALID_LAYERS = OTHER"),
    "a symbol is set by name": appended('setattr(Symbols, "MLP", "E")'),
    "the set of layers is changed": lambda text: appended(
        f"Symbols.{'VALID_LAYERS' if 'VALID_LAYERS' in text else 'VALID'}.discard(1)"
    )(text),
    "the class is passed on": appended("letters = Symbols"),
    "the class is defined again": appended('class Symbols:\n    MLP = "E"'),
    "the class is another's name": lambda text: appended("Symbols = OTHER.Symbols")(
        put("class Symbols:", "class OtherSymbols:")(text)
    ),
    "a function has the name of the class": appended("def Symbols():\n    pass"),
    "the class is bound again": appended("Symbols = OTHER"),
    "names come from a star": appended("from megatron.core.utils import *"),
    "a bracket is a symbol": put('MLP = "-"', 'MLP = "-"\n    GROUP_START = "["'),
    "letters are replaced": sub(LISTED, r"    layer_type_list = list(\1.replace('-', 'E'))\n"),
    "letters are replaced by another function": appended(
        "def spelled(text):\n    return text.translate({45: 'E'})"
    ),
    "symbols are replaced": appended(
        "def spelled(text):\n    return text.replace(Symbols.MLP, Symbols.MAMBA)"
    ),
    "letters are mapped": sub(LISTED, r"    layer_type_list = [ALIASES[c] for c in \1]\n"),
    "the list is reversed": sub(LISTED, r"    layer_type_list = list(reversed(\1))\n"),
    "the list is changed afterwards": sub(LISTED, r"\g<0>    layer_type_list.reverse()\n"),
    "the list is changed in a place": sub(LISTED, r"\g<0>    layer_type_list[0] = OTHER\n"),
    "the list is changed by a function": sub(LISTED, r"\g<0>    remap(layer_type_list)\n"),
    "the list is made again": sub(
        LISTED, r"\g<0>    layer_type_list = [ALIASES[c] for c in layer_type_list]\n"
    ),
    "the pattern is changed before": sub(LISTED, r"    \1 = expanded(\1)\n\g<0>"),
    "another list is returned": sub(LISTED, r"\g<0>    if OTHER:\n        return OTHER\n"),
    "the list is not made there": sub(
        r"def (validate_segment_layers|_allocate_override)\(", "def f("
    ),
    "a rule hides in a helper": appended(
        "def _mixed(pattern):\n    return Symbols.MAMBA in pattern and Symbols.MLP in pattern"
    ),
    "a rule is spelled in letters": rule("'-' in pattern"),
    "a rule is from elsewhere": appended("from megatron.core.rules import check_pattern"),
    "a rule counts": rule("pattern.count(Symbols.MLP) > 1"),
    "a rule compares sets": rule("{Symbols.MLP, Symbols.MAMBA} <= set(pattern)"),
    "a rule has a second condition": rule("Symbols.MLP in pattern and len(pattern) > 3"),
    "a rule is about a part": rule("Symbols.MLP in mtp_pattern", "mtp_pattern"),
    "a rule is about something beside the pattern": rule(
        "Symbols.MLP in mtp_pattern", "pattern, mtp_pattern"
    ),
    "a rule is about a changed pattern": appended(
        "def _check(pattern):\n    pattern = pattern[1:]\n"
        "    if Symbols.MLP in pattern:\n        raise ValueError('no')"
    ),
    "a rule holds in a branch": appended(
        "def _check(pattern, strict):\n    if strict:\n        if Symbols.MLP in pattern:\n"
        "            raise ValueError('no')"
    ),
    "a rule holds unless the function returned": appended(
        "def _check(pattern, strict):\n    if not strict:\n        return\n"
        "    if Symbols.MLP in pattern:\n        raise ValueError('no')"
    ),
    "a rule does more than raise": appended(
        "def _check(pattern):\n    if Symbols.MLP in pattern:\n        warn()\n"
        "        raise ValueError('no')"
    ),
    "a rule is asserted": appended("def _check(pattern):\n    assert Symbols.MLP not in pattern"),
    "a rule is put with the ratios": sub(
        r"def (pattern_from_ratios|allocate_layers)\((.*\n)*?\)( -> \w+)?:\n",
        "\\g<0>    if Symbols.MLP in total_layers_count:\n        raise ValueError('no')\n",
    ),
}
#: Rewrites of what a stack up to 0.16 takes its part of the list with.
SELECTS: dict[str, Change] = {
    "letters are mapped": sub(
        r"selected_list = layer_type_list\[.*\]", "selected_list = remapped()"
    ),
    "the list is changed before": sub(
        r"        selected_list = ", r"        layer_type_list = remapped()\n\g<0>"
    ),
    "the part is changed afterwards": sub(
        r"        return offset, selected_list", r"        selected_list = remapped()\n\g<0>"
    ),
    "another is returned": sub(
        r"        selected_list = ", r"        if OTHER:\n            return 0, OTHER\n\g<0>"
    ),
    "nothing is returned": sub(
        r"        return offset, selected_list\n", "        self.o = offset\n"
    ),
}
EDITED = ("0.16", "0.19")


def rewritten(release: str, where: int, change: Change, path: Path) -> Path:
    """A wheel with one of its two modules changed, which is still Python."""
    texts = texts_of(wheel(release))
    name = home(texts)[where]
    changed = change(texts[name])
    assert changed != texts[name]
    ast.parse(changed)
    return write_wheel(path / f"megatron_core-{release}-py3-none-any.whl", {**texts, name: changed})


def refuse(path: Path) -> None:
    """Hold every way of reading it to a refusal, with nothing native left."""
    done = CliRunner().invoke(cli, ["surface", str(path)])
    assert done.exit_code == 3, done.output
    assert "SEAM-S02" in done.stderr
    assert done.stdout == ""
    found = read_environment(path)
    assert found.surface.symbols == ()
    assert [type(fault) for fault in found.faults] == [SurfaceUnknown]


@pytest.mark.parametrize("release", EDITED)
def test_a_wheel_that_is_only_written_anew_is_read_as_before(release: str, tmp_path: Path) -> None:
    path = write_wheel(tmp_path / "same.whl", texts_of(wheel(release)))
    assert described(path) == described(wheel(release))


@pytest.mark.parametrize("release", EDITED)
@pytest.mark.parametrize("what", STACKS)
def test_a_wheel_whose_stack_is_rewritten_is_refused(
    what: str, release: str, tmp_path: Path
) -> None:
    refuse(rewritten(release, 1, STACKS[what], tmp_path))


@pytest.mark.parametrize("release", EDITED)
@pytest.mark.parametrize("what", ALLOCATIONS)
def test_a_wheel_whose_symbols_are_rewritten_is_refused(
    what: str, release: str, tmp_path: Path
) -> None:
    refuse(rewritten(release, 0, ALLOCATIONS[what], tmp_path))


@pytest.mark.parametrize("what", SELECTS)
def test_a_wheel_whose_selection_of_layers_is_rewritten_is_refused(
    what: str, tmp_path: Path
) -> None:
    refuse(rewritten("0.16", 1, SELECTS[what], tmp_path))


@pytest.mark.parametrize("release", EDITED)
def test_a_refused_wheel_is_refused_to_a_program_too(release: str, tmp_path: Path) -> None:
    path = rewritten(release, 1, STACKS["a match"], tmp_path)
    done = registry("surface", path, "--json", cwd=tmp_path, code=3)
    found = json.loads(done.stdout)
    assert found["outcome"] == "refused"
    assert [reason["code"] for reason in found["reasons"]] == ["SEAM-S02"]
