"""The keys of ``[megatron]``: settings that this Megatron has, with values of their types."""

from collections.abc import Iterator
from typing import Any, Final

import attrs

from megatron_seams.errors import RecipeInvalid, SeamsError, SurfaceUnknown, UnknownNativeKey
from megatron_seams.planning import activations
from megatron_seams.planning.derived import ELSEWHERE
from megatron_seams.planning.environment import Environment
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.upstream.flags import Flag
from megatron_seams.upstream.settings import NativeSettings

#: Flags that set more than one field, or none by their own value -> what to set instead.
_INDIRECT: Final = {
    **{
        flag.removeprefix("--"): f'activation_func = "{name}" and '
        f"gated_linear_unit = {str(gated).lower()}"
        for (name, gated), flag in activations.FLAGS.items()
        if flag is not None
    },
    "group-query-attention": "num_query_groups",
    "use-rotary-position-embeddings": 'position_embedding_type = "rope"',
    "no-position-embedding": 'position_embedding_type = "none"',
    "padded-vocab-size": "vocab_size",
}
#: What to do about settings that cannot be read.
_UNREAD: Final = (
    "use a megatron-core whose configuration this version reads, or a newer megatron-seams; until "
    "then no setting of a recipe can be checked"
)


def native_keys(recipe: Recipe, environment: Environment) -> Iterator[SeamsError]:
    """A fault for each key that this Megatron lacks or another part of the recipe decides.

    A key that it has is a fault where its value is not of the type that upstream annotates. Where
    its settings cannot be read at all, that is the one fault.
    """
    given = [(f"megatron.{key}", key, value) for key, value in recipe.megatron.items()]
    given += [(f"smoke.megatron.{key}", key, value) for key, value in recipe.smoke.megatron.items()]
    version, known = environment.surface.version, None
    if given and version:
        try:
            known = environment.settings()
        except SurfaceUnknown as unread:
            asked = f"the settings of the megatron-core at {environment.surface.origin}"
            yield attrs.evolve(unread, asked=asked, next=_UNREAD)
    for path, key, value in given:
        if key in ELSEWHERE:
            yield _unknown(path, key, f"{ELSEWHERE[key]} decides it", "set it there")
        elif known is None:
            continue
        elif known.knows(key):
            yield from _mistyped(path, key, value, known)
        elif known.fields_unread:
            yield _unknown(
                path,
                key,
                f"the configuration of megatron-core {version} cannot be read: "
                f"{'; '.join(known.fields_unread)}",
                _UNREAD,
            )
        else:
            found, advice = _instead(key, known)
            problem = f"megatron-core {version} has no such setting{found}"
            yield _unknown(path, key, problem, advice)


def _unknown(path: str, key: str, found: str, advice: str) -> UnknownNativeKey:
    return UnknownNativeKey(asked=f"[{path}]", found=found, next=advice, subject=key, key=path)


def _mistyped(path: str, key: str, value: Any, known: NativeSettings) -> Iterator[RecipeInvalid]:
    if value is None:
        return  # a model's own configuration may say that there is none
    for each in known.types(key):
        expected = each.expected
        if key == activations.KEYS[0]:
            if isinstance(value, str) and value in activations.ACTIVATIONS:
                continue
            expected = f"one of {', '.join(activations.ACTIVATIONS)}"
        elif each.accepts(value):
            continue
        yield RecipeInvalid(
            asked=f"[{path}] = {value!r}",
            found=f"it is {_kind(value)}; expected {expected}",
            next="correct the value",
            subject=key,
            key=path,
        )
        return  # both classes say the same of a setting that both have


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(type(value), "a list" if isinstance(value, list | tuple) else "a table")


def _instead(key: str, known: NativeSettings) -> tuple[str, str]:
    """The likely meaning of a key that is no setting, and the advice."""
    advice = "correct the key; it is a field of TransformerConfig or a model argument"
    flag = _flag_of(key, known)
    if flag is None:
        near = known.nearest(key)
        return (
            f"; the names most like it are {', '.join(near)} (none is applied)" if near else "",
            advice,
        )
    name = next((n for n in flag.names if n == _spelled(key)), flag.names[0])
    setting = _setting_of(name, flag, known)
    if setting is None:
        return (
            f"; {name} is an argument of a run, and decides nothing in the model",
            f"leave it out, and pass {name} to upstream's trainer",
        )
    return f"; it is the name of the flag {name}", f"set {setting} instead"


def _spelled(key: str) -> str:
    return "--" + key.replace("_", "-")


def _flag_of(key: str, known: NativeSettings) -> Flag | None:
    return known.flags.get(_spelled(key)) or next(iter(known.of_dest(key)), None)


def _setting_of(name: str, flag: Flag, known: NativeSettings) -> str | None:
    """The setting that a flag sets, with its value where the flag has none of its own."""
    if name.removeprefix("--") in _INDIRECT:
        return _INDIRECT[name.removeprefix("--")]
    value = dict(flag.sets).get(name)
    if known.knows(flag.dest):
        return flag.dest if value is None else f"{flag.dest} = {str(value).lower()}"
    fed = known.fed_by(flag.dest)
    if fed is None:
        return None
    field, opposite = fed
    return field if value is None else f"{field} = {str(value is not opposite).lower()}"
