"""The module that turns a pattern into layers: only statements and functions that are known.

``Symbols`` is read by its own reader. What remains decides which layers a stage gets, and in which
order: a function of a known name must have a known form, and a name means one thing in the file.
"""

import ast
import builtins
from collections.abc import Iterable

from megatron_seams.upstream.forms import digest, form
from megatron_seams.upstream.known_functions import KNOWN
from megatron_seams.upstream.layer_configs import LayerConfigs
from megatron_seams.upstream.source import SourceFile

_LOGGER = form("logger = logging.getLogger(__name__)")
_SCRIPT = "__name__"
#: The function that lists configurations where a stack is given those; its form is read with them.
_LISTS_CONFIGS = "validate_segment_layers"
_BUILTINS = frozenset(dir(builtins))


def check_allocation(
    file: SourceFile, configs: LayerConfigs | None, rules: Iterable[ast.If]
) -> None:
    """Check everything in the module but ``Symbols``.

    Args:
        file: The module.
        configs: Its table of configuration classes, and by it the function that lists the layers,
            if it has one.
        rules: The statements that refuse combinations of layers, which were read.

    Raises:
        SurfaceUnknown: A statement or function is not known.
    """
    check_builtins(file)
    read = tuple(rules)
    for node in file.tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                file.require(file.bound[name] == 1, f"line {node.lineno}: {name} is bound twice")
                if configs is None or name != _LISTS_CONFIGS:
                    check_known(file, node, read)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                file.require(
                    all(alias.asname is None and file.bound[alias.name] <= 1 for alias in names),
                    f"line {node.lineno} imports under another name",
                )
            case ast.Expr(value=ast.Constant()):
                pass
            case (
                ast.Assign(value=ast.Dict() as value) | ast.AnnAssign(value=ast.Dict() as value)
            ) if configs is not None and value is configs.table:
                pass
            case ast.Assign() if _LOGGER.match(node) is not None:
                pass
            case ast.If(test=ast.Compare(left=ast.Name(id=name))) if name == _SCRIPT:
                pass
            case _:
                raise file.unknown(f"line {node.lineno} is not understood")


def check_builtins(file: SourceFile) -> None:
    """Check that no built-in name means something else anywhere in a file.

    Raises:
        SurfaceUnknown: One does.
    """
    taken = sorted(_BUILTINS & {name for name, count in file.bound.items() if count})
    # A parameter or a field may be called like a built-in function that nothing else calls.
    called = {
        node.func.id
        for node in file.nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    wrong = [name for name in taken if name in called]
    file.require(not wrong, f"{', '.join(wrong)} may not be Python's own")


def check_known(
    file: SourceFile, node: ast.FunctionDef | ast.ClassDef, without: Iterable[ast.If] = ()
) -> None:
    """Check that a function of a known name has a known form.

    Args:
        file: The file that it is in.
        node: The function; one of a name that is not known may be anything.
        without: Statements in it that are read by themselves.

    Raises:
        SurfaceUnknown: It has another form.
    """
    if node.name not in KNOWN:
        return
    found = digest(node, tuple(without))
    file.require(
        found in KNOWN[node.name],
        f"line {node.lineno}: {node.name} is not the one that is known (its form is {found})",
    )
