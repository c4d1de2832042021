"""Write what is generated of docs/: command line, errors, hooks, manifest keys, models, schemas.

``python scripts/docs.py`` writes them; ``--check`` exits with 1 if a file is not current.
"""

import ast
import inspect
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import click
from schemas import descriptions, plain, schemas

import megatron_seams
from megatron_seams.base.files import replace_text
from megatron_seams.base.structure import key_of
from megatron_seams.cli import commands
from megatron_seams.errors import causes
from megatron_seams.hookspecs import FeatureContext, Hooks, LayerContext
from megatron_seams.recipes.hf_architectures import ARCHITECTURES, FOREIGN
from megatron_seams.seams.manifest import Manifest

DOCS = Path(__file__).resolve().parent.parent / "docs"
_SOURCE = Path(megatron_seams.__file__).parent

_ERRORS = """\
# Error codes

Each cause has one code, which does not change. Every message says what was asked, what was found
and what to do next; a refusal lists all its reasons at once. `--json` prints the same fields.
Below each cause are the next steps that its messages give, with … for names.
"""

_CLI = """\
# Command line

`registry` and `python -m megatron_seams` are the same program. Exit codes: 0 fine, 1 findings,
2 refused or bad input, 3 the environment is broken. 3 is also the code where the operating system
lets nothing go on: the output cannot be written (a full disk), whoever reads it has closed it
(`registry list | head -1`, with `set -o pipefail`), the working directory is gone. 130 is that of
an interruption.

With `--json` the answer is one document, of a schema that `registry docs` lists; a refusal too, and
a command line that cannot be read, of [refused.schema.json](schema/refused.schema.json).

Tables and drawings fit the terminal: columns that find no room go below their row, and nothing is
cut. Paths and next steps stay one line, to be copied. A pipe has 100 columns, and `COLUMNS` sets
another width; messages on a pipe are not wrapped.

A shell completes commands, options, families, seams, upstream's constants, pages and files, once
its start-up file has the line

```
eval "$(_REGISTRY_COMPLETE=bash_source registry)"      # ~/.bashrc
eval "$(_REGISTRY_COMPLETE=zsh_source registry)"       # ~/.zshrc
_REGISTRY_COMPLETE=fish_source registry | source       # ~/.config/fish/config.fish
```
"""

_HOOKS = """\
# Hooks

A plugin's `plugin.py` implements one of these with `@hookimpl`: the one of its manifest's family.
A family that a manifest introduces gets `<family>_layer` or `<family>_feature` in the same way, and
a seam with options implements `<family>_options` beside it, which returns the attrs class of
`[seams.NAME]`.
[Write a seam](write-a-seam.md) shows all three at work.
"""

_MANIFEST = """\
# Manifest keys

The tables and keys of a `seam.toml`. Types are never coerced, and a key that is not listed is
refused.
"""

_MODELS = """\
# Models of Hugging Face

A model's `config.json`, or the folder that holds it, is read as a recipe: `registry resolve
FOLDER`. Nothing is fetched. Its layers may be spelled in any of these forms; those that contradict
each other are refused.

| form | keys |
| --- | --- |
| upstream's symbols, as text or as a list, with `|` and `/` | `hybrid_override_pattern` |
| a name for each layer | `layers_block_type`, `layer_types`, `block_types` |
| a number for each layer | `attn_type_list` |
| layer numbers | `attn_layer_indices`, `full_attn_idxs`, `hybrid_layer_ids`, \
`linear_attn_config` |
| periods | `full_attention_interval`, `attn_layer_period` with `attn_layer_offset` |
| experts | `expert_layer_period` with `expert_layer_offset`, `decoder_sparse_step`, \
`mlp_only_layers`, `first_k_dense_replace`, `moe_layer_freq`, `mlp_layer_types` |
| MTP depths | `num_nextn_predict_layers`, `mtp_num_hidden_layers`, `num_mtp_modules` |
| layers of an MTP depth | `mtp_hybrid_override_pattern`, `mtp_layers_block_type`, else the \
architecture's own |

A layer that is a mixer and a feed-forward layer becomes two layers, as upstream's hybrid patterns
have it: Megatron's layer numbers are then not the configuration's. Of a configuration of several
models (`text_config`, `llm_config`) the part that describes the language model is read, and a note
says so.

Sizes take Megatron's names and go to `[megatron]`. A key that changes the model and that no setting
of Megatron carries is named in a note, with its value: the plan leaves it out.

## Architectures

A block whose family Megatron or an installed seam builds is planned; any other is refused by its
family, with the architecture's name for it. An architecture that is not listed is refused by its
name; with a `hybrid_override_pattern` it is read as `nemotron_h`, and a note says so.

| `model_type` | models | block -> family | followed by |
| --- | --- | --- | --- |
"""

_FOREIGN = """
## Blocks without a native layer

The patterns of Megatron-Core 0.19 have none of these. A recipe made from a configuration spells
each with a letter of its own, and a seam for the family is all that is missing
([Write a seam](write-a-seam.md)).

| family | letter | what it is |
| --- | --- | --- |
"""

_TYPES = {
    "str": "text",
    "int": "whole number",
    "bool": "true or false",
    "date": "date",
    "tuple": "array of texts",
    "Any": "of that type",
}


# --- errors -----------------------------------------------------------------------------------


def errors() -> str:
    """A section for each cause: its docstring, and the next steps of its messages."""
    advice = _advice()
    lines = [_ERRORS]
    for cause in causes():
        lines.append(f"## {cause.code} {cause.__name__}\n")
        lines.append(f"{_sentence(cause)} Exit code {int(cause.exit_code)}.\n")
        listed = sorted(advice.get(cause.__name__, set()))
        lines += [f"- {text}" for text in listed] + ([""] if listed else [])
    return "\n".join(lines).rstrip() + "\n"


def _sentence(thing: Any) -> str:
    return plain(inspect.cleandoc(thing.__doc__ or ""))


def _advice() -> dict[str, set[str]]:
    """Cause -> the texts of ``next`` in the calls that make it."""
    found: dict[str, set[str]] = {}
    names = {cause.__name__ for cause in causes()}
    for file in sorted(_SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                for keyword in node.keywords:
                    if node.func.id in names and keyword.arg == "next":
                        found.setdefault(node.func.id, set()).update(_texts(keyword.value))
    return found


def _texts(node: ast.expr) -> Iterator[str]:
    """The text of an expression, with … for each inserted value; nothing for a name alone."""
    match node:
        case ast.Constant(value=str() as text):
            yield text
        case ast.JoinedStr(values=parts):
            joined = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts
            )
            yield re.sub(r"…( ?…)+", "…", joined)
        case ast.IfExp(body=body, orelse=orelse):
            yield from _texts(body)
            yield from _texts(orelse)


# --- the command line -------------------------------------------------------------------------


def _command(name: str, command: click.Command) -> Iterator[str]:
    arguments = [
        p.make_metavar(click.Context(command))
        for p in command.params
        if isinstance(p, click.Argument)
    ]
    yield f"\n## `registry {' '.join([name, *arguments])}`\n"
    yield " ".join(inspect.cleandoc(command.help or "").split()) + "\n"
    options = [p for p in command.params if isinstance(p, click.Option)]
    if options:
        yield "| option | meaning |\n| --- | --- |"
        for option in options:
            metavar = (
                ""
                if option.is_flag
                else f" {option.metavar or option.make_metavar(click.Context(command))}"
            )
            spelled = f"{option.opts[-1]}{metavar}".replace("|", "\\|")
            yield f"| `{spelled}` | {option.help} |"


def command_line() -> str:
    """Every command with its options."""
    lines = [_CLI]
    for name, command in commands().items():
        lines.extend(_command(name, command))
    return "\n".join(lines) + "\n"


# --- hooks and manifests ----------------------------------------------------------------------


def hooks() -> str:
    """A section for each hook, and a table for each context."""
    lines = [_HOOKS]
    for name, hook in vars(Hooks).items():
        if name.startswith("_"):
            continue
        summary, _, rest = inspect.cleandoc(hook.__doc__ or "").partition("\n\n")
        lines += [f"## `{name}(context)`\n", summary + "\n"]
        if rest:
            lines.append(plain(rest) + "\n")
        given = "LayerContext" if name.endswith("_layer") else "FeatureContext"
        lines.append(f"Given a [`{given}`](#{given.lower()}).\n")
    for context in (LayerContext, FeatureContext):
        lines += [f"## {context.__name__}\n", "| field | meaning |\n| --- | --- |"]
        lines += [f"| `{name}` | {text} |" for name, text in descriptions(context).items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def manifest() -> str:
    """A section for each table of a manifest, and a row for each key."""
    lines = [_MANIFEST, *_table(Manifest, "")]
    for field in attrs.fields(attrs.resolve_types(Manifest)):
        table = key_of(field.name)
        for part in (field.type, *getattr(field.type, "__args__", ())):
            if isinstance(part, type) and attrs.has(part):
                lines += [f"## `[{table}]`\n", *_table(part, table)]
            elif getattr(part, "__origin__", None) is dict and attrs.has(part.__args__[1]):
                named = f"{table}.KEY"
                lines += [f"## `[{named}]`\n", *_table(part.__args__[1], named)]
    return "\n".join(lines).rstrip() + "\n"


def _table(cls: type, table: str) -> Iterator[str]:
    meanings = descriptions(cls)
    yield "| key | type | if left out | meaning |\n| --- | --- | --- | --- |"
    for field in attrs.fields(attrs.resolve_types(cls)):
        key = f"{table}.{key_of(field.name)}".removeprefix(".")
        meaning = meanings[field.name].replace("|", "\\|")
        yield f"| `{key}` | {_type(field.type)} | {_default(field)} | {meaning} |"
    yield ""


def _type(kind: Any) -> str:
    members = [part for part in getattr(kind, "__args__", ()) if part is not type(None)]
    if isinstance(kind, types.UnionType) and len(members) > 1:
        return " or ".join(map(_type, members))
    named = getattr(kind, "__name__", "")
    if named not in _TYPES:
        inner = [part for part in getattr(kind, "__args__", ()) if part is not type(None)]
        return _type(inner[0]) if inner else "table"
    return _TYPES[named]


def _default(field: "attrs.Attribute[Any]") -> str:
    if field.default is attrs.NOTHING:
        return "refused"
    if isinstance(field.default, attrs.Factory):  # type: ignore[arg-type] # a class, to isinstance
        return "all false"
    if field.default is None or field.default in ("", ()):
        return ""
    return f"`{str(field.default).lower()}`"


# --- models -----------------------------------------------------------------------------------

_FOLLOWED = {"none": "", "dense": "mlp", "sparse": "moe, or mlp where there are no experts"}


def models() -> str:
    """The architectures of Hugging Face that are read, and what each of their blocks becomes."""
    lines = [_MODELS.rstrip()]
    for name, known in ARCHITECTURES.items():
        by_family: dict[str, list[str]] = {}
        for block, family in known.blocks.items():
            by_family.setdefault(family, []).append(f"`{block}`")
        blocks = "; ".join(f"{', '.join(names)} -> {family}" for family, names in by_family.items())
        row = f"| `{name}` | {known.title} | {blocks} | {_FOLLOWED[known.feed_forward]} |"
        lines.append(row)
    lines.append(_FOREIGN.rstrip())
    lines += [f"| {it.family} | `{it.letter}` | {it.title} |" for it in FOREIGN.values()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write or check; returns the exit code."""
    check = "--check" in sys.argv
    stale = 0
    pages = {
        "errors.md": errors(),
        "cli.md": command_line(),
        "hooks.md": hooks(),
        "manifest.md": manifest(),
        "models.md": models(),
    }
    pages |= {
        f"schema/{name}": json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in schemas().items()
    }
    for name, text in pages.items():
        file = DOCS / name
        if check and (not file.exists() or file.read_text(encoding="utf-8") != text):
            sys.stderr.write(f"docs/{name} is not current: run `python scripts/docs.py`\n")
            stale = 1
        elif not check:
            replace_text(file, text)
    return stale


if __name__ == "__main__":
    sys.exit(main())
