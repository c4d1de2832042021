"""Every way in which Python binds a name is counted, wherever it stands."""

import ast

import pytest

from megatron_seams.upstream.ast_queries import bindings


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import a.b, c as d", "a d"),
        ("from e import f, g as h", "f h"),
        ("from e import *", "*"),
        ("x = y = 1; x = 2", "x y x"),
        ("x: int", "x"),
        ("x.attribute = 1; x[0] = 1", ""),
        ("(x := y)", "x"),
        ("del x", "x"),
        ("for i, (j, *k) in z: pass", "i j k"),
        ("with z as x: pass", "x"),
        ("[x for x in z]", "x"),
        ("def f(a, /, b, *c, d=e, **g): return b", "f a b c d g"),
        ("lambda a: a", "a"),
        ("async def f(): pass", "f"),
        ("class C(B): x = 1", "C x"),
        ("def f():\n global a, b\n def g():\n  nonlocal c", "f a b g c"),
        ("try: pass\nexcept E as e: pass\nexcept F: pass", "e"),
        ("match z:\n case [a, *b] | {'c': a, **b}: pass", "a b a b"),
        ("match z:\n case [*_] | {'c': C(x=_)}: pass\n case int() as n: pass", "n"),
    ],
)
def test_a_binding_is_counted(text: str, names: str) -> None:
    found = bindings(ast.walk(ast.parse(text)))
    assert sorted(found.elements()) == sorted(names.split())
