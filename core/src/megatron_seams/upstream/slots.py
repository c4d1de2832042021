"""Which slot of the submodules a branch of upstream's stack builds.

Before it builds a slot, upstream may change what is inside its specification; that is followed.
A piece that may put one slot's specification in another's place is not.
"""

import ast

BUILD = "build_module"
SUBMODULES = "submodules"


def built_by(body: list[ast.stmt]) -> tuple[str, dict[str, ast.expr]] | None:
    """The slot that a branch builds, and what it passes by keyword; None if not understood.

    Understood is ``layer = build_module(submodules.SLOT, keyword=...)``, also through a local name
    that was bound to the slot first, and whose specification may have been changed inside since.
    """
    match body:
        case [*before, ast.Assign(targets=[ast.Name(id="layer")], value=ast.Call() as call)]:
            pass
        case _:
            return None
    match call:
        case ast.Call(func=ast.Name(id=name), args=[target], keywords=keywords) if (
            name == BUILD and all(keyword.arg for keyword in keywords)
        ):
            passed = {keyword.arg: keyword.value for keyword in keywords if keyword.arg}
        case _:
            return None
    match before, target:
        case [], ast.Attribute(value=ast.Name(id=name), attr=slot) if name == SUBMODULES:
            return slot, passed
        case (
            [
                ast.Assign(
                    targets=[ast.Name(id=local)],
                    value=ast.Attribute(value=ast.Name(id=name), attr=slot),
                ),
                *changes,
            ],
            ast.Name(id=used),
        ) if name == SUBMODULES and local == used:
            return (slot, passed) if all(_specialises(node, local) for node in changes) else None
    return None


def _specialises(node: ast.stmt, local: str) -> bool:
    """Whether a statement puts a copy of the specification that ``local`` names, with another part.

    It is a copy that is changed: the specification itself is the caller's, and other layers' too.
    """
    match node:
        case ast.If(test=ast.Compare() as test, body=[*imports, copied, changed], orelse=[]):
            return (
                ast.unparse(test).startswith("self.config.")
                and all(isinstance(part, ast.ImportFrom) and _is_plain(part) for part in imports)
                and _copies(copied, local)
                and _changes(changed, local)
            )
    return False


def _is_plain(node: ast.ImportFrom) -> bool:
    """Whether a statement imports something of Megatron-Core's under its own name."""
    plain = all(alias.asname is None for alias in node.names)
    return plain and node.level == 0 and (node.module or "").startswith("megatron.core.")


def _copies(node: ast.stmt, local: str) -> bool:
    """Whether a statement is ``local = copy.deepcopy(local)``."""
    return ast.unparse(node) == f"{local} = copy.deepcopy({local})"


def _changes(node: ast.stmt, local: str) -> bool:
    """Whether a statement sets a part inside the specification that ``local`` names."""
    match node:
        case ast.Assign(targets=[ast.Attribute() as target], value=ast.Name()):
            inside: ast.expr = target
            while isinstance(inside, ast.Attribute):
                inside = inside.value
            return isinstance(inside, ast.Name) and inside.id == local
    return False
