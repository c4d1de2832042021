"""Which slot of the submodules a branch of upstream's stack builds.

Before it builds a slot, upstream may change what is inside its specification; that is followed.
A piece that may put one slot's specification in another's place is not.
"""

import ast

from megatron_seams.upstream.ast_queries import is_docstring

BUILD = "build_module"
SUBMODULES = "submodules"


def keeps_slots(method: ast.FunctionDef) -> bool:
    """Whether a method returns a copy of the submodules with every slot in its place.

    Upstream fuses the projections inside one slot's specification by such a method.
    """
    match [node for node in method.body if not is_docstring(node)]:
        case [
            ast.Assign(
                targets=[ast.Name(id=made)],
                value=ast.Call(
                    func=ast.Attribute(value=ast.Name(id="copy"), attr="deepcopy"),
                    args=[ast.Name(id=given)],
                ),
            ),
            *rest,
            ast.Return(value=ast.Name(id=returned)),
        ] if made == given == returned == SUBMODULES:
            pass
        case _:
            return False
    uses = [
        node
        for statement in rest
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and node.id == SUBMODULES
    ]
    taken = [
        node.value.value
        for node in rest
        if isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Attribute)
    ]
    left = any(isinstance(n, ast.Return) for statement in rest for n in ast.walk(statement))
    return not left and all(any(use is value for value in taken) for use in uses)


def built_by(body: list[ast.stmt]) -> tuple[str, tuple[str, ...]] | None:
    """The slot that a branch builds, and the keywords that it passes; None if not understood.

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
            passed = tuple(keyword.arg for keyword in keywords if keyword.arg)
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
    """Whether a statement changes at most the inside of the specification that ``local`` names."""
    match node:
        case ast.If(body=body, orelse=[]):
            return all(_specialises(part, local) for part in body)
        case ast.ImportFrom() | ast.Import():
            return True
        case ast.Assign(
            targets=[ast.Name(id=name)],
            value=ast.Call(
                func=ast.Attribute(value=ast.Name(id="copy"), attr="deepcopy"),
                args=[ast.Name(id=copied)],
                keywords=[],
            ),
        ):
            return name == copied == local
        case ast.Assign(targets=[ast.Attribute() as target], value=ast.Name()):
            inside: ast.expr = target
            while isinstance(inside, ast.Attribute):
                inside = inside.value
            return isinstance(inside, ast.Name) and inside.id == local
    return False
