"""The combinations of layers that upstream refuses, read from the module that checks patterns."""

import ast
from collections.abc import Iterator, Mapping

import attrs

from megatron_seams.upstream.ast_queries import bindings

#: Upstream's names for the text that it checks; a rule over anything else is about a part of it.
_WHOLE = ("pattern", "segment")


@attrs.frozen(kw_only=True)
class Exclusion:
    """A combination that upstream refuses, as a boolean expression over its constants.

    Attributes:
        operator: ``has`` (the pattern has a layer), ``and``, ``or`` or ``not``.
        constant: The constant of ``has``.
        parts: The operands of the others.
        message: Upstream's message.
        whole: Whether the rule is about decoder and MTP part together; else about each by itself.
    """

    operator: str
    constant: str = ""
    parts: tuple["Exclusion", ...] = ()
    message: str = ""
    whole: bool = False

    @property
    def constants(self) -> frozenset[str]:
        """The constants that it is about."""
        own = {self.constant} if self.operator == "has" else set()
        return frozenset(own).union(*(part.constants for part in self.parts))

    def forbids(self, constants: frozenset[str]) -> bool:
        """Whether a text that contains exactly these constants is refused."""
        if self.operator == "has":
            return self.constant in constants
        refused = [part.forbids(constants) for part in self.parts]
        match self.operator:
            case "not":
                return not refused[0]
            case "and":
                return all(refused)
            case _:
                return any(refused)


def read_exclusions(
    tree: ast.Module, sets: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[Exclusion, ast.If]]:
    """Each rule that is understood, with the statement that states it.

    A rule stands in the body of a function that is given the whole text, before any return: one in
    a loop or a branch holds under conditions that are not read. A rule that is not understood is
    left out here; it mentions a layer, and the reader of the symbols accounts for every mention.

    Args:
        tree: The module.
        sets: The sets of constants in ``Symbols``: name -> constants.
    """
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef) or not function.args.args:
            continue
        text = function.args.args[0].arg
        if text not in _WHOLE or bindings(ast.walk(function))[text] != 1:
            continue
        whole = _splits_parts(function)
        for node in function.body:
            if isinstance(node, ast.If) and _only_raises(node):
                rule = _rule(node.test, _message(node), text, sets)
                if rule is not None:
                    yield attrs.evolve(rule, whole=whole), node
            elif any(isinstance(part, ast.Return) for part in ast.walk(node)):
                break


def _splits_parts(function: ast.FunctionDef) -> bool:
    """Whether a function is given a text with MTP parts, which it takes apart itself."""
    return any(
        isinstance(node, ast.Attribute) and node.attr == "MTP_SEPARATOR"
        for node in ast.walk(function)
    )


def _only_raises(node: ast.If) -> bool:
    """Whether a condition leads to an exception and nothing else."""
    return isinstance(node.body[0], ast.Raise) and not node.orelse


def _rule(
    test: ast.expr, message: str, text: str, sets: Mapping[str, tuple[str, ...]]
) -> Exclusion | None:
    """The rule that a condition over the variable ``text`` states; None if it is not understood."""

    def has(constant: str) -> Exclusion:
        return Exclusion(operator="has", constant=constant, message=message)

    match test:
        case ast.Compare(
            left=ast.Attribute(value=ast.Name(id="Symbols"), attr=constant),
            ops=[ast.In() | ast.NotIn() as operator],
            comparators=[ast.Name(id=searched)],
        ) if searched == text:
            if isinstance(operator, ast.In):
                return has(constant)
            return Exclusion(operator="not", parts=(has(constant),), message=message)
        case ast.Call(
            func=ast.Name(id="any"),
            args=[
                ast.GeneratorExp(
                    elt=ast.Compare(
                        left=ast.Name(id=sought),
                        ops=[ast.In()],
                        comparators=[ast.Name(id=searched)],
                    ),
                    generators=[
                        ast.comprehension(
                            target=ast.Name(id=member),
                            iter=ast.Attribute(value=ast.Name(id="Symbols"), attr=name),
                            ifs=[],
                        )
                    ],
                )
            ],
            keywords=[],
        ) if searched == text and sought == member and name in sets:
            return Exclusion(operator="or", parts=tuple(map(has, sets[name])), message=message)
        case ast.BoolOp(op=operation, values=values):
            parts = [_rule(value, message, text, sets) for value in values]
            known = tuple(part for part in parts if part is not None)
            if len(known) != len(parts):
                return None
            name = "and" if isinstance(operation, ast.And) else "or"
            return Exclusion(operator=name, parts=known, message=message)
    return None


def _message(node: ast.If) -> str:
    """The text that upstream raises with where it is a literal, else the condition."""
    match node.body[0]:
        case ast.Raise(exc=ast.Call(args=[ast.Constant(value=str() as text), *_])):
            return text
    return ast.unparse(node.test)
