"""Only one module of the runtime knows releases of Megatron, and the tests run on the one named."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.version import Version

import megatron_seams.runtime
from megatron_seams.upstream.locate import importable_megatron
from megatron_seams.upstream.surface import read_surface

RUNTIME = Path(megatron_seams.runtime.__file__).parent
COMPAT = RUNTIME / "compat.py"
RELEASE = re.compile(r"\d+\.\d+")


def version_knowledge(source: str) -> list[str]:
    """Where a module asks which Megatron it runs on, each as ``line: what``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        what = None
        if isinstance(node, ast.Try) and _imports_megatron(node):
            what = "an import of Megatron that may fail"
        elif isinstance(node, ast.Compare) and any(
            _is_version(part) for part in (node.left, *node.comparators)
        ):
            what = "a comparison of versions"
        elif isinstance(node, ast.Call) and _asks_for_a_name(node):
            what = "a look for a name of Megatron's"
        if what is not None:
            found.append(f"{node.lineno}: {what}")
    return found


def _imports_megatron(node: ast.Try) -> bool:
    names: list[str] = []
    for part in (inner for statement in node.body for inner in ast.walk(statement)):
        if isinstance(part, ast.ImportFrom):
            names.append(part.module or "")
        elif isinstance(part, ast.Import):
            names += [alias.name for alias in part.names]
    return any(name.split(".")[0] == "megatron" for name in names)


def _is_version(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and RELEASE.match(node.value) is not None
    return "version" in ast.unparse(node).lower()


def _asks_for_a_name(node: ast.Call) -> bool:
    """``hasattr(HybridModel, ...)``: classes are Megatron's, values are the run's own."""
    if not isinstance(node.func, ast.Name) or node.func.id not in {"hasattr", "getattr"}:
        return False
    asked = node.args[0]
    return isinstance(asked, ast.Name) and asked.id[:1].isupper()


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    from megatron.core.x import X\nexcept ImportError:\n    X = None",
        "try:\n    import megatron.core.x\nexcept ModuleNotFoundError:\n    pass",
        "if Version(__version__) < Version('0.18'):\n    pass",
        "if megatron_version >= limit:\n    pass",
        "new = release != '0.17'",
        "made = hasattr(HybridModel, 'x')",
        "made = getattr(TransformerLayer, 'x', None)",
    ],
)
def test_what_the_scan_looks_for_it_finds(source: str) -> None:
    assert len(version_knowledge(source)) == 1


def test_no_other_module_of_the_runtime_knows_releases() -> None:
    found = {
        str(file.relative_to(RUNTIME)): version_knowledge(file.read_text(encoding="utf-8"))
        for file in sorted(RUNTIME.rglob("*.py"))
        if file != COMPAT
    }
    assert len(found) > 10
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_every_difference_says_its_fact_and_when_it_can_go() -> None:
    source = COMPAT.read_text(encoding="utf-8")
    lines, start, differences = source.splitlines(), 0, 0
    for node in ast.parse(source).body:
        decides = any(isinstance(part, ast.If | ast.IfExp | ast.Try) for part in ast.walk(node))
        # With the comment above it.
        text = "\n".join(lines[start : node.end_lineno])
        start = node.end_lineno or start
        assert text.count("Fact: ") == text.count("Goes: ")
        if decides:
            differences += 1
            assert text.count("Goes: ") == 1, text
    assert differences >= 5


@pytest.mark.megatron
@pytest.mark.release
def test_the_megatron_that_is_read_is_the_one_that_is_imported(
    record_property: Callable[[str, object], None],
) -> None:
    import megatron.core

    source, _ = importable_megatron()
    assert source is not None
    assert Path(megatron.core.__file__).is_relative_to(source.origin)
    # A checkout appends its commit.
    assert Version(Version(megatron.core.__version__).public) == read_surface(source).version
    record_property("megatron-core", Version(megatron.core.__version__).public)
