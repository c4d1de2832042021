"""Loading: each chosen plugin is checked against its manifest before anything is built with it."""

import datetime
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import attrs
import pytest

from megatron_seams.errors import (
    HookMissing,
    HookUndeclared,
    OptionsInvalid,
    PluginImport,
    Refusal,
    SeamsError,
    Shadowed,
)
from megatron_seams.runtime.plugins import load_plugins
from megatron_seams.seams.manifest import About, Carrier, Introduces, Manifest, Requires, Upstream
from megatron_seams.seams.seam import Seam

GOOD = """
from megatron_seams.hookspecs import hookimpl

@hookimpl
def {family}_layer(context):
    return ("built", "{family}", context)
"""
WITH_OPTIONS = (
    GOOD
    + """
import attrs

@attrs.frozen(kw_only=True)
class Options:
    head_dim: int = 64
    tied: bool = False

@hookimpl
def {family}_options():
    return Options
"""
)

MakeSeam = Callable[..., Seam]


@pytest.fixture
def make_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSeam:
    """A package on the path whose ``plugin`` module is the text given, and its seam."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, plugin: str, *, family: str = "recurrent") -> Seam:
        # The folder's number makes the name new in each test: an import is for the whole process.
        package = f"loaded_{name}_{tmp_path.name}"
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / "plugin.py").write_text(dedent(plugin).replace("{family}", family))
        introduces = Introduces(name=family, summary="Made up.") if family == "kda" else None
        manifest = Manifest(
            schema=1,
            seam=About(
                name=name,
                family=family,
                summary="A seam for tests.",
                owner="@tests/loading",
                introduced=datetime.date(2026, 1, 1),
                review_by=datetime.date(2027, 1, 1),
            ),
            upstream=Upstream(fallback="refuse"),
            requires=Requires(megatron_core=">=0.19"),
            carrier=Carrier(slots=("mamba_layer",)),
            family=introduces,
        )
        return Seam(
            manifest=manifest,
            package=package,
            distribution=f"dist-{name}",
            version="1.0",
            directory=folder,
            manifest_digest="0" * 64,
        )

    return make


def reasons(
    seams: list[Seam], options: dict[str, dict[str, object]] | None = None
) -> list[SeamsError]:
    with pytest.raises(Refusal) as refused:
        load_plugins(seams, options)
    return list(refused.value.reasons)


def test_a_good_plugin_is_called_with_its_context(make_seam: MakeSeam) -> None:
    seam = make_seam("good", GOOD)
    assert load_plugins([seam]).call(seam, "the context") == ("built", "recurrent", "the context")


def test_a_family_that_core_has_never_heard_of_gets_its_hook(make_seam: MakeSeam) -> None:
    seam = make_seam("new", WITH_OPTIONS, family="kda")
    loaded = load_plugins([seam], {"new": {"head-dim": 32}})
    assert loaded.call(seam, None) == ("built", "kda", None)
    assert attrs.asdict(loaded.options["new"]) == {"head_dim": 32, "tied": False}


@pytest.mark.parametrize(
    "error", ["ImportError('no such thing')", "SystemExit(3)", "KeyError('k')"]
)
def test_a_plugin_that_cannot_be_imported_is_refused_by_name(
    make_seam: MakeSeam, error: str
) -> None:
    (fault,) = reasons([make_seam("bad", f"raise {error}")])
    assert isinstance(fault, PluginImport)
    assert error.partition("(")[0] in fault.found
    assert "@tests/loading" in fault.asked


def test_a_hook_that_the_manifest_does_not_declare_is_refused(make_seam: MakeSeam) -> None:
    greedy = GOOD + "\n@hookimpl\ndef attention_layer(context):\n    return 1\n"
    (fault,) = reasons([make_seam("greedy", greedy)])
    assert isinstance(fault, HookUndeclared)
    assert "'attention_layer'" in fault.found


def test_a_hook_that_no_family_has_is_refused(make_seam: MakeSeam) -> None:
    misspelt = GOOD + "\n@hookimpl\ndef recurrrent_layer(context):\n    return 1\n"
    (fault,) = reasons([make_seam("misspelt", misspelt)])
    assert isinstance(fault, HookUndeclared)


def test_a_declared_hook_that_is_not_there_is_refused(make_seam: MakeSeam) -> None:
    unmarked = "def recurrent_layer(context):\n    return 1\n"
    (fault,) = reasons([make_seam("unmarked", unmarked)])
    assert isinstance(fault, HookMissing)
    assert "'recurrent_layer'" in fault.asked


def test_a_hook_that_returns_nothing_is_refused_when_called(make_seam: MakeSeam) -> None:
    seam = make_seam(
        "empty",
        "from megatron_seams.hookspecs import hookimpl\n"
        "@hookimpl\ndef recurrent_layer(context):\n    return None\n",
    )
    loaded = load_plugins([seam])
    with pytest.raises(HookMissing):
        loaded.call(seam, None)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"head-dim": "64"}, "seams.opts.head-dim"),
        ({"head-dim": True}, "seams.opts.head-dim"),
        ({"tied": "false"}, "seams.opts.tied"),
        ({"head_dim": 64}, "seams.opts.head_dim"),
    ],
)
def test_options_are_never_coerced_and_never_passed_over(
    make_seam: MakeSeam, options: dict[str, object], key: str
) -> None:
    (fault,) = reasons([make_seam("opts", WITH_OPTIONS)], {"opts": options})
    assert isinstance(fault, OptionsInvalid)
    assert fault.key == key


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("raise RuntimeError('no kernel')", "it raised RuntimeError: no kernel"),
        ("return None", "it returned None"),
        ("return dict", "it returned <class 'dict'>"),
    ],
)
def test_a_hook_that_names_no_class_of_options_is_refused(
    body: str, found: str, make_seam: MakeSeam
) -> None:
    hook = f"\n\n@hookimpl\ndef {{family}}_options():\n    {body}\n"
    (fault,) = reasons([make_seam("opts", GOOD + hook)], {"opts": {"size": 1}})
    assert isinstance(fault, HookMissing)
    assert fault.found == found


def test_options_for_a_seam_that_takes_none_are_refused(make_seam: MakeSeam) -> None:
    (fault,) = reasons([make_seam("plain", GOOD)], {"plain": {"heads": 4}})
    assert isinstance(fault, OptionsInvalid)


def test_a_plugin_imported_from_elsewhere_than_its_manifest_is_refused(
    make_seam: MakeSeam, tmp_path: Path
) -> None:
    seam = make_seam("moved", GOOD)
    (fault,) = reasons([attrs.evolve(seam, directory=tmp_path / "elsewhere")])
    assert isinstance(fault, Shadowed)
    assert str(seam.directory) in fault.found


def test_no_fault_hides_another_and_no_good_plugin_is_registered_beside_it(
    make_seam: MakeSeam,
) -> None:
    seams = [
        make_seam("first", "raise ImportError('a')"),
        make_seam("second", "x = 1", family="attention"),
        make_seam("third", WITH_OPTIONS, family="mla"),
    ]
    found = reasons(seams, {"third": {"unknown": 1}})
    assert [type(fault) for fault in found] == [PluginImport, HookMissing, OptionsInvalid]


def test_a_plan_s_manager_holds_its_own_seams_and_nothing_else(make_seam: MakeSeam) -> None:
    chosen, other = make_seam("chosen", GOOD), make_seam("other", GOOD)
    assert load_plugins([other]).manager is not load_plugins([other]).manager
    names = [name for name, _ in load_plugins([chosen]).manager.list_name_plugin()]
    assert names == ["chosen"]
