"""The documentation keeps up: what a user can meet is written down, and tables are generated."""

import ast
import inspect
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import attrs
import click
import pytest
from click.testing import CliRunner

from megatron_seams import pytest_plugin
from megatron_seams.base.structure import key_of, structure
from megatron_seams.cli import cli, commands
from megatron_seams.errors import SeamsError, causes
from megatron_seams.governance.workspace import Holds, WorkspacePolicy
from megatron_seams.hookspecs import FeatureContext, Hooks, LayerContext
from megatron_seams.planning.environment import read_environment
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.runtime.conformance import rules
from megatron_seams.seams.manifest import CAPABILITIES, Manifest
from seam_support import run_python


def page(repository: Path, name: str) -> str:
    return (repository / "docs" / name).read_text(encoding="utf-8")


def all_keys(cls: type) -> set[str]:
    """Every key that an attrs class is read from, at any depth, without its path."""
    found: set[str] = set()
    for field in attrs.fields(attrs.resolve_types(cls)):
        found.add(key_of(field.name))
        for part in [field.type, *getattr(field.type, "__args__", ())]:
            if isinstance(part, type) and attrs.has(part):
                found |= all_keys(part)
            elif get_origin(part) is dict and attrs.has(part.__args__[1]):
                found |= all_keys(part.__args__[1])
    return found


def missing_from(text: str, words: set[str]) -> list[str]:
    """The words that do not stand in a text by themselves."""
    return sorted(w for w in words if not re.search(rf"(?<![\w-]){re.escape(w)}(?![\w-])", text))


def test_the_generated_pages_are_current(repository: Path) -> None:
    done = run_python(repository / "scripts" / "docs.py", "--check", cwd=repository)
    assert done.returncode == 0, done.stderr


def test_every_cause_has_one_code_and_a_section(repository: Path) -> None:
    text = page(repository, "errors.md")
    codes = [cause.code for cause in causes()]
    assert len(codes) == len(set(codes))
    for cause in causes():
        assert re.fullmatch(r"SEAM-[A-Z]\d\d", cause.code)
        (section,) = re.findall(
            rf"^## {cause.code} {cause.__name__}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
        )
        assert f"Exit code {int(cause.exit_code)}." in section
        assert inspect.cleandoc(cause.__doc__ or "") != inspect.cleandoc(SeamsError.__doc__ or "")
    # A cause of a cause would be no subclass that the table is made from.
    assert not [cause for cause in causes() if cause.__subclasses__()]


def test_every_command_and_option_stands_in_the_command_line_page(repository: Path) -> None:
    text = page(repository, "cli.md")
    for name, command in commands().items():
        section = re.search(
            rf"^## `registry {name}\b.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
        )
        assert section, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert f"`{parameter.opts[-1]}" in section[0], (name, parameter.opts)
                assert parameter.help, (name, parameter.opts)
    for code in ("0 fine", "1 findings", "2 refused or bad input", "3 the environment is broken"):
        assert code in text


def test_every_command_explains_itself() -> None:
    for name, command in commands().items():
        assert command.help, name


def test_every_hook_and_what_it_is_given_stands_in_the_page_for_authors(repository: Path) -> None:
    text = page(repository, "write-a-seam.md")
    hooks = {name for name in vars(Hooks) if not name.startswith("_")}
    assert len(hooks) >= 10
    assert missing_from(text, hooks) == []
    for rule in ("<family>_layer", "<family>_feature", "<family>_options"):
        assert rule in text
    given = {field.name for cls in (LayerContext, FeatureContext) for field in attrs.fields(cls)}
    assert missing_from(text, given) == []


def test_every_hook_has_a_sentence_of_its_own() -> None:
    sentences = [inspect.getdoc(hook) for name, hook in vars(Hooks).items() if name[0] != "_"]
    assert all(sentences)
    assert len(set(sentences)) == len(sentences)


def test_every_hook_has_a_section_and_its_context_is_told(repository: Path) -> None:
    text = page(repository, "hooks.md")
    for name in vars(Hooks):
        if not name.startswith("_"):
            assert f"## `{name}(context)`" in text
    for cls in (LayerContext, FeatureContext):
        for field in attrs.fields(cls):
            assert re.search(rf"^\| `{field.name}` \| .{{10,}} \|$", text, re.MULTILINE), field.name


def test_every_key_of_a_manifest_stands_in_the_page_for_authors(repository: Path) -> None:
    assert missing_from(page(repository, "write-a-seam.md"), all_keys(Manifest)) == []


def test_every_key_of_a_manifest_has_its_meaning(repository: Path) -> None:
    rows = re.findall(
        r"^\| `([\w.-]+)` \| .* \| (.{3,}) \|$", page(repository, "manifest.md"), re.MULTILINE
    )
    named = {key.rpartition(".")[2] for key, _ in rows}
    assert named == all_keys(Manifest)
    assert len({meaning for _, meaning in rows}) == len(rows)


def test_every_key_of_a_recipe_stands_in_the_page_on_recipes(repository: Path) -> None:
    assert missing_from(page(repository, "recipes.md"), all_keys(Recipe)) == []


def test_every_key_of_a_workspace_stands_in_the_page_on_the_gate(repository: Path) -> None:
    keys = all_keys(WorkspacePolicy) | all_keys(Holds)
    assert missing_from(page(repository, "check.md"), keys) == []


def pages(repository: Path) -> list[Path]:
    return [*sorted(repository.glob("*.md")), *sorted((repository / "docs").glob("*.md"))]


def test_every_link_between_the_pages_leads_somewhere(repository: Path) -> None:
    for file in pages(repository):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8")):
            assert (file.parent / target).exists(), (file.name, target)


def test_no_code_in_the_documentation_is_one_that_does_not_exist(repository: Path) -> None:
    known = {cause.code for cause in causes()}
    for file in pages(repository):
        assert set(re.findall(r"SEAM-[A-Z]\d\d", file.read_text(encoding="utf-8"))) <= known, file


def test_every_registry_command_in_the_documentation_is_one(repository: Path) -> None:
    for file in pages(repository):
        text = file.read_text(encoding="utf-8")
        for name in re.findall(r"^(?:\$ )?registry ([a-z]+)", text, re.MULTILINE):
            assert name in commands(), (file.name, name)


def recipes_in(text: str) -> list[dict[str, Any]]:
    """The TOML blocks of a page that are whole recipes."""
    blocks = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    tables = [tomllib.loads(block) for block in blocks]
    return [table for table in tables if "model" in table]


def test_every_toml_block_is_toml_and_every_whole_recipe_is_valid(repository: Path) -> None:
    for file in pages(repository):
        for table in recipes_in(file.read_text(encoding="utf-8")):
            _, faults = structure(Recipe, table)
            assert not faults, (file.name, faults)


#: One argument of a docstring's section, or several of one meaning.
ARGUMENTS = re.compile(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*):", re.MULTILINE)


def test_the_arguments_of_a_docstring_are_those_of_its_function(repository: Path) -> None:
    seen = 0
    for file in files_in(repository, "core", "plugins", "scripts"):
        if file.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            section = re.search(
                r"^Args:\n((?:    .*\n?|\n)+)", ast.get_docstring(node) or "", re.MULTILINE
            )
            taken = {it.arg for it in ast.walk(node.args) if isinstance(it, ast.arg)}
            for listed in ARGUMENTS.findall(section[1]) if section else ():
                named = {name.strip("*") for name in listed.split(", ")}
                assert named <= taken, (file, node.name, named - taken)
                seen += 1
    assert seen > 400


def test_the_package_says_that_it_is_typed(repository: Path) -> None:
    for package in [repository / "core", *sorted((repository / "plugins").iterdir())]:
        assert list(package.glob("src/*/py.typed")), package.name
        assert (package / "LICENSE").is_file(), package.name
        assert (package / "README.md").is_file(), package.name


def test_every_seam_of_the_repository_has_an_owner_who_owns_its_folder(repository: Path) -> None:
    """One line for each plugin, by the team that its manifests name."""
    lines = [
        line.split()
        for line in (repository / "CODEOWNERS").read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    owners = dict(lines)
    plugins = [path for path in sorted((repository / "plugins").iterdir()) if path.is_dir()]
    assert {path for path in owners if path != "*"} == {f"/plugins/{p.name}/" for p in plugins}
    for plugin in plugins:
        for manifest in plugin.glob("src/**/seam.toml"):
            named = tomllib.loads(manifest.read_text(encoding="utf-8"))["seam"]["owner"]
            assert owners[f"/plugins/{plugin.name}/"] == named, manifest


def test_nothing_at_the_root_or_in_core_names_a_plugin(repository: Path) -> None:
    """Code that needs a plugin is in its folder; only a recipe may name what to install."""
    names = [path.name for path in (repository / "plugins").iterdir() if path.is_dir()]
    packages = [f"megatron_seams_{name}" for name in names] + [f"megatron-seams-{n}" for n in names]
    checked = [repository / "pyproject.toml", repository / "Makefile"]
    checked += [repository / "core" / "pyproject.toml", *(repository / "core/src").rglob("*.py")]
    for file in checked:
        text = file.read_text(encoding="utf-8")
        assert not [package for package in packages if package in text], file


def test_every_rule_and_option_of_the_conformance_kit_stands_in_its_page(repository: Path) -> None:
    text = page(repository, "conformance.md")
    known = [rule for rule in vars(rules).values() if isinstance(rule, rules.Rule)]
    assert len(known) > 10
    for rule in known:
        assert f"| {rule.name} | {rule.says} | {rule.next} |" in text
    assert text.count("\n| ") == len(known) + 7  # two heads of two lines, and three options
    options = re.findall(r"addoption\(\s*\"(--[a-z-]+)\"", inspect.getsource(pytest_plugin))
    assert len(options) == 3
    for option in options:
        assert f"| `{option} " in text
    for capability in CAPABILITIES:
        assert f"`{capability}`" in text


# --- the architecture -------------------------------------------------------------------------


def test_every_room_stands_in_the_architecture(repository: Path) -> None:
    text = page(repository, "architecture.md")
    package = repository / "core/src/megatron_seams"
    rooms = {f"{file.parent.name}/" for file in package.glob("*/__init__.py")}
    modules = {file.name for file in package.glob("*.py")}
    assert {"planning/", "runtime/"} <= rooms
    assert missing_from(text, rooms | modules) == []


def test_the_diagram_has_the_rooms_and_the_arrows_of_the_import_contract(repository: Path) -> None:
    settings = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = (one["layers"] for one in contracts if one["type"] == "layers")
    level = {room.strip(): at for at, rooms in enumerate(layers) for room in rooms.split("|")}
    words = {"errors", "families", "hookspecs", "_version"}
    diagram = page(repository, "architecture.md").split("```mermaid\n")[1].partition("```")[0]
    arrows = []
    for start, ends in re.findall(r"(\w+)(?:\[[^]]*\])? --> (.+)", diagram):
        arrows += [(start, end) for end in re.findall(r"(\w+)(?:\[[^]]*\])?(?: & |$)", ends)]
    shown = {room for arrow in arrows for room in arrow} - {"words"}
    assert shown == level.keys() - words - {"pytest_plugin", "__main__"}
    for start, end in arrows:
        assert level[start] < level.get(end, level["errors"]), (start, end)


def defined_in(module: Path) -> set[str]:
    """The names at the top of a module, and ``Class.method`` for its classes."""
    names = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = (it for it in node.body if isinstance(it, ast.FunctionDef))
            names |= {f"{node.name}.{it.name}" for it in inner}
            fields = (it.target for it in node.body if isinstance(it, ast.AnnAssign))
            names |= {f"{node.name}.{it.id}" for it in fields if isinstance(it, ast.Name)}
    return names


def test_every_module_and_name_in_the_pages_for_developers_exists(repository: Path) -> None:
    package = repository / "core/src/megatron_seams"
    rooms = "|".join(file.parent.name for file in package.glob("*/__init__.py"))
    named = re.compile(rf"(?:{rooms})/[a-z_/]*[a-z_](?:\.[A-Za-z_.]+)?")
    seen = 0
    for file in ("docs/architecture.md", "CONTRIBUTING.md"):
        text = (repository / file).read_text(encoding="utf-8")
        for place in re.findall(r"[`|]([\w./]+)[`|]", text):
            if not named.fullmatch(place) or (package / place).exists():
                continue
            module, _, name = place.partition(".")
            path = package / f"{module}.py"
            path = path if path.exists() else package / module / "__init__.py"
            assert path.exists(), (file, place)
            assert not name or name in defined_in(path), (file, place)
            seen += 1
    assert seen > 40


def test_every_test_file_that_contributors_are_sent_to_exists(repository: Path) -> None:
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/*])tests/[\w*/]+\.py", text))
    assert len(named) > 25
    assert [name for name in sorted(named) if not list(repository.glob(name))] == []


def test_the_glossary_has_each_word_once_and_in_order(repository: Path) -> None:
    words = re.findall(r"^\| ([\w -]+) \| .+ \|$", page(repository, "glossary.md"), re.MULTILINE)
    assert len(words) > 60
    assert words[1:] == sorted(set(words[1:]), key=str.casefold)


# --- environment variables --------------------------------------------------------------------


def is_environ(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "environ"


def variables_in(source: str) -> Iterator[str]:
    """The environment variables that a Python module reads, sets or removes."""
    tree = ast.parse(source)
    constants = {
        node.targets[0].id if isinstance(node, ast.Assign) else node.target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.targets[0] if isinstance(node, ast.Assign) else node.target, ast.Name)
    }
    keys: list[ast.expr | None] = []
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=value, slice=key) if is_environ(value):
                keys.append(key)
            case ast.Compare(left=key, comparators=[other]) if is_environ(other):
                keys.append(key)
            case ast.Call(func=ast.Attribute(value=value), args=[key, *_]) if is_environ(value):
                keys.append(key)
            case ast.Call(func=ast.Attribute(attr="setenv" | "delenv" | "getenv"), args=[key, *_]):
                keys.append(key)
            case ast.BinOp(left=value, right=ast.Dict(keys=named)) if is_environ(value):
                keys += named
            case ast.Dict(keys=[None, *named]) | ast.AugAssign(value=ast.Dict(keys=named)):
                # Settings with some more: {**settings, "NAME": value}, settings |= {"NAME": value}.
                keys += named if any(map(is_environ, ast.walk(tree))) else []
            case ast.DictComp(generators=[ast.comprehension(iter=ast.Call(func=func), ifs=ifs)]):
                if isinstance(func, ast.Attribute) and is_environ(func.value):
                    keys += [part for test in ifs for part in ast.walk(test)]  # type: ignore[misc]
    for key in keys:
        named = key.value if isinstance(key, ast.Constant) else None
        if isinstance(key, ast.Name):
            named = constants.get(key.id)
        if isinstance(named, str) and named.isupper():
            yield named
    yield from (it for it in constants.values() if str(it).startswith("MEGATRON_SEAMS_"))


def variables_of_shell(text: str) -> Iterator[str]:
    """The environment variables that a shell script or a Makefile reads or sets."""
    yield from re.findall(r"\$\{([A-Z][A-Z0-9_]+)", text)
    yield from re.findall(r"(?:^|[\s:])(?:export )?([A-Z][A-Z0-9_]+) ?=(?!=)", text, re.MULTILINE)


def files_in(repository: Path, *places: str) -> list[Path]:
    files: list[Path] = []
    for place in places:
        found = repository / place
        files += [found] if found.is_file() else sorted(found.rglob("*"))
    return [file for file in files if file.is_file() and "__pycache__" not in file.parts]


def test_every_environment_variable_stands_in_its_page_and_no_other(repository: Path) -> None:
    text = page(repository, "environment-variables.md")
    own, libraries = text.split("Read by Python and the libraries")
    rows = re.findall(r"^\| (`.+?`) \| `([^`]+)` \| .{10,} \|$", own, re.MULTILINE)
    where = {name: file for names, file in rows for name in re.findall(r"`(\w+)`", names)}
    found: dict[str, set[str]] = {}
    for file in files_in(
        repository, "core/src", "scripts", "Makefile", ".ci", "benchmarks", "tests", "conftest.py"
    ):
        text = file.read_text(encoding="utf-8", errors="ignore")
        names: Iterator[str] = iter(())
        if file.suffix == ".py":
            names = variables_in(text)
        elif file.name == "Makefile" or text.startswith("#!/usr/bin/env bash"):
            names = variables_of_shell(text)
        for name in names:
            found.setdefault(name, set()).add(file.relative_to(repository).as_posix())
    assert found.keys() == where.keys()
    for name, file in where.items():
        assert file in found[name], (name, file, found[name])
    assert re.findall(r"^\| `", libraries, re.MULTILINE)


def test_a_plugin_lists_its_own_environment_variables(repository: Path) -> None:
    known = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", page(repository, "environment-variables.md")))
    for plugin in sorted((repository / "plugins").iterdir()):
        readme = (plugin / "README.md").read_text(encoding="utf-8") if plugin.is_dir() else ""
        for file in plugin.rglob("*.py"):
            names = set(variables_in(file.read_text(encoding="utf-8"))) - known
            assert missing_from(readme, names) == [], file


#: Its output is figures of a training run; the demo ends with it.
_TRAINS = "registry smoke"


def shown(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command in the blocks of a page, and the pieces of output that are shown below it."""
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for command, below in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            pieces = [piece.strip("\n") for piece in below.split("…\n")]
            yield command, [piece for piece in pieces if piece]


def test_the_output_that_the_readme_shows_is_what_is_printed(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    found = [(command, pieces) for command, pieces in shown(text) if pieces]
    assert len(found) > 3
    installed = {seam.name for seam in read_environment().discovery.seams}
    monkeypatch.chdir(repository)
    for command, pieces in found:
        if command.startswith(_TRAINS):
            continue
        words = shlex.split(command)
        setting = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
        named = re.findall(r"seam '?(\w+)'? (?:\d|of|on)", "\n".join(pieces))
        if not {*named, *setting.get("MEGATRON_SEAMS_ALLOW", "").split()} <= installed:
            continue  # a seam that has been deleted, which the page may show until it is rewritten
        arguments = words[words.index("registry") + 1 :]
        done = CliRunner().invoke(cli, arguments, env={"COLUMNS": "100", **setting})
        rest = done.output
        for piece in pieces:
            assert f"\n{piece}\n" in f"\n{rest}", (command, piece, done.output)
            rest = f"\n{rest}".partition(f"\n{piece}\n")[2]


def test_every_command_in_the_table_of_the_readme_can_be_typed(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"`registry ([^`]+)`", text)
    assert len(rows) > 12
    for row in rows:
        name, *given = row.replace("\\|", "|").split()
        for parameter in commands()[name].params:
            if isinstance(parameter, click.Option) and parameter.required:
                assert {*parameter.opts} & {*given}, row


def test_the_demo_prints_what_a_reader_can_type(repository: Path, tmp_path: Path) -> None:
    script = (repository / "scripts" / "demo.sh").read_text(encoding="utf-8")
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    (tools / "printenv").symlink_to(shutil.which("printenv") or "")
    (tmp_path / "scripts").mkdir()
    head = script[: script.index("\nshow 0 ")]
    (tmp_path / "scripts" / "demo.sh").write_text(
        f'{head}\nshow 0 "A title" SETTING="two words" printenv SETTING\n', encoding="utf-8"
    )
    done = subprocess.run(
        ["bash", tmp_path / "scripts" / "demo.sh"], capture_output=True, text=True, check=True
    )
    (typed,) = re.findall(r"^\$ (.*)$", done.stdout, re.MULTILINE)
    again = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(f"\n{again.stdout}")
    assert again.stdout == "two words\n"
