"""A hundred faults, each forced into one plugin on disk: one finding, and the others are untouched.

The sound plugin beside it and this environment's own must be listed exactly as without the fault,
and every exit code must be the one that docs/cli.md gives.
"""

import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from megatron_seams.cli import cli
from megatron_seams.errors import ExitCode, Refusal
from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import load_recipe
from megatron_seams.runtime.plugins import load_plugins
from megatron_seams.seams.manifest import CAPABILITIES, MAX_BYTES
from seam_support import Table, install_plugin, manifest_table, toml, write_record

NOON = datetime.datetime(2026, 11, 23, 12, 0)


@attrs.frozen
class Place:
    """Where a fault is forced: a folder of installed plugins, ``bad`` among them."""

    site: Path
    cwd: Path

    @property
    def package(self) -> Path:
        return self.site / "acme_bad"

    @property
    def manifest(self) -> Path:
        return self.package / "seam.toml"

    @property
    def info(self) -> Path:
        return self.site / "acme_bad-1.0.dist-info"

    def write(self, table: Table | bytes) -> None:
        data = table if isinstance(table, bytes) else toml(table).encode()
        self.manifest.write_bytes(data)

    def install(self, distribution: str, name: str, table: Table | None, **options: Any) -> Path:
        package = f"acme_{distribution.rpartition('-')[2]}"
        points = options.pop("entry_points", {name: package})
        return install_plugin(
            self.site, distribution, {package: table}, entry_points=points, **options
        )


Force = Callable[[Place], object]


def whole() -> Table:
    """The manifest of ``bad``, with every optional key in it."""
    table = manifest_table(
        "bad", "family_bad", fallback="native", accepts={"symbol-name": "BAD", "tracking": "x"}
    )
    table["carrier"].update(part="mixer", needs=["config"], takes=["name"])
    return table


def key(path: str, value: Any) -> Force:
    """Set one key, or take it out."""

    def force(place: Place) -> None:
        table = whole()
        inner = table
        *parts, last = path.split(".")
        for part in parts:
            inner = inner.setdefault(part, {})
        if value is None:
            del inner[last]
        else:
            inner[last] = value
        place.write(table)

    return force


def bytes_of(data: bytes) -> Force:
    return lambda place: place.write(data)


def points(**entries: str) -> Force:
    """Other entry points than the manifest's."""

    def force(place: Place) -> None:
        lines = "".join(f"{name} = {target}\n" for name, target in entries.items())
        (place.info / "entry_points.txt").write_text(f"[megatron_seams]\n{lines}")

    return force


# --- what each is ------------------------------------------------------------------------------

WRONG_TYPES = {
    "schema": "1",
    "seam": "bad",
    "seam.name": 3,
    "seam.family": True,
    "seam.summary": ["x"],
    "seam.owner": {"team": "x"},
    "seam.status": 1,
    "seam.introduced": NOON,
    "seam.review-by": "2027-05-01",
    "upstream": [1],
    "upstream.fallback": True,
    "upstream.symbol-name": 7,
    "upstream.native-since": 0.21,
    "upstream.tracking": 1,
    "carrier": True,
    "carrier.slots": "mamba_layer",
    "carrier.part": ["mixer"],
    "carrier.needs": "config",
    "carrier.takes": [1],
    "family": "family_bad",
    "family.name": 1,
    "family.summary": False,
    "requires": ">=0.17",
    "requires.megatron-core": 0.19,
    "supports": ["inference"],
    **{f"supports.{capability}": "false" for capability in CAPABILITIES},
}
MISSING = (
    "schema",
    "seam",
    "seam.name",
    "seam.family",
    "seam.summary",
    "seam.owner",
    "seam.introduced",
    "seam.review-by",
    "upstream",
    "upstream.fallback",
    "upstream.symbol-name",
    "carrier",
    "carrier.slots",
    "family.name",
    "family.summary",
    "requires",
    "requires.megatron-core",
)
UNKNOWN = (
    "owner",
    "seam.review_by",
    "upstream.since",
    "carrier.slot",
    "family.kind",
    "requires.torch",
    "supports.all",
)
UNFIT: dict[str, Any] = {
    "schema": 2,
    "seam.name": "Bad-1",
    "seam.family": "a b",
    "seam.summary": " ",
    "seam.owner": "acme/layers",
    "seam.status": "trial",
    "upstream.fallback": "perhaps",
    "upstream.native-since": "soon",
    "carrier.slots": [],
    "carrier.part": "half",
    "family.name": "other",
    "requires.megatron-core": "newest",
}
UNREADABLE = {
    "bad TOML": b"schema = 1\n[seam\n",
    "a key twice": b"schema = 1\nschema = 1\n",
    "not UTF-8": 'summary = "café"\n'.encode("latin-1"),
    "UTF-16": "schema = 1\n".encode("utf-16"),
    "a null byte": b"schema = 1\x00\n",
    "huge": b"#" * (MAX_BYTES + 1),
    "huge by far": b"#" * (64 * MAX_BYTES),
    "a number without end": b"x = 9" + b"9" * 5000,
    "nested without end": b"x = " + b"[" * 20_000 + b"]" * 20_000,
    "no such day": b"x = 2026-13-45\n",
}


def link_out(place: Place) -> None:
    place.manifest.rename(place.cwd / "elsewhere.toml")
    place.manifest.symlink_to(place.cwd / "elsewhere.toml")


def link_to_nothing(place: Place) -> None:
    place.manifest.unlink()
    place.manifest.symlink_to(place.package / "none.toml")


def folder_instead(place: Place) -> None:
    place.manifest.unlink()
    place.manifest.mkdir()


def module_instead(place: Place) -> None:
    shutil.rmtree(place.package)
    (place.site / "acme_bad.py").write_text("raise SystemExit\n")


def stale_egg(place: Place) -> None:
    """The metadata that an older installer left of the same distribution."""
    egg = place.site / "acme_bad-0.9.egg-info"
    egg.mkdir()
    (egg / "PKG-INFO").write_text("Metadata-Version: 1.0\nName: acme-bad\nVersion: 0.9\n")
    shutil.copy(place.info / "entry_points.txt", egg)


def moved_egg(place: Place) -> None:
    """An egg-info whose package is gone, under another name than the sound one's."""
    shutil.rmtree(place.info)
    shutil.rmtree(place.package)
    egg = place.site / "acme_bad.egg-info"
    egg.mkdir()
    (egg / "PKG-INFO").write_text("Metadata-Version: 1.0\nName: acme-bad\nVersion: 0.9\n")
    (egg / "entry_points.txt").write_text("[megatron_seams]\nbad = acme_bad\n")


def unrecorded(place: Place) -> None:
    """The package on the path is not what the distribution says that it installed."""
    write_record(place.site, place.info.name, {"acme_other/__init__.py": b""})


def shadow_folder(place: Place) -> None:
    shutil.copytree(place.package, place.cwd / "acme_bad")


def shadow_module(place: Place) -> None:
    (place.cwd / "acme_bad.py").write_text("")


def second(distribution: str) -> Force:
    """Another distribution with the same seam; its name decides which is found first."""
    return lambda place: place.install(distribution, "bad", manifest_table("bad", "family_bad"))


def third(place: Place) -> None:
    second("acme-a")(place)
    second("acme-z")(place)


#: Name -> how it is forced, and the one code that it gives.
FAULTS: dict[str, tuple[Force, str]] = {
    **{f"{path} is of another type": (key(path, v), "D04") for path, v in WRONG_TYPES.items()},
    **{f"{path} is missing": (key(path, None), "D04") for path in MISSING},
    **{f"{path} is unknown": (key(path, "x"), "D04") for path in UNKNOWN},
    **{f"{path} does not fit": (key(path, value), "D04") for path, value in UNFIT.items()},
    **{f"the manifest is {name}": (bytes_of(data), "D03") for name, data in UNREADABLE.items()},
    "the manifest is another's": (bytes_of(toml(manifest_table("good")).encode()), "D01"),
    "a link out of the package": (link_out, "D03"),
    "a link to nothing": (link_to_nothing, "D02"),
    "a folder named seam.toml": (folder_instead, "D02"),
    "no manifest": (lambda place: place.manifest.unlink(), "D02"),
    "no package": (lambda place: shutil.rmtree(place.package), "D02"),
    "a module for a package": (module_instead, "D02"),
    "an attribute for a package": (points(bad="acme_bad:seam"), "D01"),
    "no package's name": (points(bad="acme bad"), "D01"),
    "a package of the standard library": (points(bad="json"), "D05"),
    "a subpackage that is not there": (points(bad="acme_bad.fast"), "D02"),
    "another seam's name": (points(worse="acme_bad"), "D01"),
    "a name twice": (points(bad="acme_bad", **{"bad ": "acme_bad"}), "D06"),
    "entry points that are none": (
        lambda place: (place.info / "entry_points.txt").write_text("[megatron_seams]\nbad\n"),
        "D01",
    ),
    "entry points that are not text": (
        lambda place: (place.info / "entry_points.txt").write_bytes(b"\xff[megatron_seams]\n"),
        "D01",
    ),
    "no METADATA": (lambda place: (place.info / "METADATA").unlink(), "D01"),
    "METADATA without a name": (
        lambda place: (place.info / "METADATA").write_text("Version: 1.0\n"),
        "D01",
    ),
    "METADATA that is not text": (
        lambda place: (place.info / "METADATA").write_bytes(b"\xff\xfe\x00"),
        "D01",
    ),
    "a record of other files": (unrecorded, "D05"),
    "a folder of that name in the working directory": (shadow_folder, "D05"),
    "a module of that name in the working directory": (shadow_module, "D05"),
    "a stale egg-info beside it": (stale_egg, "D06"),
    "an egg-info whose package is gone": (moved_egg, "D02"),
    "a second distribution before it": (second("acme-a"), "D06"),
    "a second distribution after it": (second("acme-z"), "D06"),
    "a third distribution": (third, "D06"),
    "a family that core has": (
        lambda place: place.write(manifest_table("bad", "recurrent", meaning="Mine.")),
        "D07",
    ),
    "a family that nobody introduces": (key("family", None), "D07"),
    "a feature's family for layers": (
        lambda place: place.write(manifest_table("bad", "ngram")),
        "D07",
    ),
    "a layer's family for a feature": (
        lambda place: place.write(manifest_table("bad", "recurrent", placement="embedding")),
        "D07",
    ),
    "older Megatrons only": (key("requires.megatron-core", "<0.17"), "D08"),
    "newer Megatrons only": (key("requires.megatron-core", ">=7"), "D08"),
    "no Megatron at all": (key("requires.megatron-core", ">7,<6"), "D08"),
}


def codeowners(text: str) -> Force:
    return lambda place: (place.cwd / "CODEOWNERS").write_text(text)


def committed(name: str, text: str) -> Force:
    def force(place: Place) -> None:
        (place.cwd / name).parent.mkdir()
        (place.cwd / name).write_text(text)

    return force


#: The faults that the gate finds, and the audit does not look for.
GATE: dict[str, tuple[Force, str, str]] = {
    "review-by has passed": (key("seam.review-by", datetime.date(2026, 1, 1)), "O06", "error"),
    "it is not shipped and claimed": (key("upstream.native-since", "0.1"), "D10", "error"),
    "no CODEOWNERS": (lambda place: (place.cwd / "CODEOWNERS").unlink(), "O05", "error"),
    "an owner whom CODEOWNERS does not know": (key("seam.owner", "@acme/bad"), "O03", "error"),
    "a line for somebody else": (
        codeowners("* @acme/layers\n/plugins/acme_bad/ @x/y\n"),
        "O02",
        "error",
    ),
    "a line for nobody": (codeowners("/plugins/acme_good/ @acme/layers\n"), "O01", "error"),
    "a line that is skipped": (codeowners("* @acme/layers\n/plugins/ nobody\n"), "O05", "warning"),
    "its source is not here": (
        lambda place: shutil.rmtree(place.cwd / "plugins" / "acme_bad"),
        "O04",
        "error",
    ),
    "a receipt that is none": (committed("receipts/x.json", "{}"), "V01", "error"),
    "a recipe that is none": (committed("recipes/x.toml", "[model"), "C01", "error"),
}
HOOK = "from megatron_seams.hookspecs import hookimpl\n@hookimpl\ndef {}(context): return 1\n"
#: The faults that show only when a plan is built: those of ``plugin.py``.
BUILD = {
    "it cannot be compiled": ("def", "B01"),
    "it imports what is not there": ("import not_there", "B01"),
    "it raises": ("raise ValueError('x')", "B01"),
    "it leaves": ("raise SystemExit(0)", "B01"),
    "it has no hook": ("", "B03"),
    "its hook is not marked": ("def family_bad_layer(context): return 1\n", "B03"),
    "its hook is another family's": (HOOK.format("attention_layer"), "B03"),
    "its hook is misspelt": (HOOK.format("family_bad_layers"), "B03"),
    "it has a hook too many": (
        HOOK.format("family_bad_layer") + "@hookimpl\ndef mla_layer(context): return 1\n",
        "B02",
    ),
    "its hook takes what no hook is given": (
        HOOK.format("family_bad_layer").replace("context", "config"),
        "B03",
    ),
    "it is not there": (None, "B01"),
}

RECIPE = """
schema = 1
[model]
name = "with bad"
pattern = "MB"
[dialect.tokens]
B = "family_bad"
"""


def laid_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Two sound plugins, first on the path, and a workspace as the working directory."""
    site, cwd = folder / "site", folder / "here"
    cwd.mkdir()
    made = Place(site, cwd)
    install_plugin(site, "acme-good", {"acme_good": manifest_table("good", "family_good")})
    install_plugin(site, "acme-bad", {"acme_bad": whole()}, code="")
    (made.package / "plugin.py").write_text(HOOK.format("family_bad_layer"))
    (cwd / "CODEOWNERS").write_text("* @acme/layers\n")
    (cwd / "pyproject.toml").write_text(
        '[tool.megatron-seams.policy]\nmegatron-core = ">=0.17"\nrequire-codeowners = true\n'
    )
    for folder in (site, cwd):
        monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(cwd)
    # Byte code of this process must not be part of what is installed.
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    return made


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return laid_out(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, set[Any]]:
    """The list, and the verdicts, where no fault is forced."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        laid_out(tmp_path_factory.mktemp("before"), monkeypatch)
        _, listing = ran("list", "--json")
        _, gate = ran("check", "--format", "json")
    return listing, {(one["code"], one["subject"]) for one in gate["verdicts"]}


def ran(*arguments: str) -> tuple[int, Table]:
    """A command's exit code and its JSON."""
    done = CliRunner().invoke(cli, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    found: Table = json.loads(done.stdout)
    return done.exit_code, found


def others(listing: Table) -> list[Table]:
    """Every family and seam of a listing that has nothing to do with ``bad``.

    A family that only ``bad`` claims is left out: its row says so. Core's own are claimed by
    plugins of the repository, any of which may have been deleted.
    """
    rows = [
        {**row, "seams": [seam for seam in row["seams"] if seam["name"] != "bad"]}
        for row in listing["families"]
    ]
    return [row for row in rows if row["seams"] or row["native_symbol"]]


def test_there_are_a_hundred() -> None:
    assert len(FAULTS) + len(GATE) + len(BUILD) >= 100


@pytest.mark.usefixtures("place")
def test_without_a_fault_there_is_no_finding() -> None:
    code, listing = ran("list", "--json")
    assert (code, listing["findings"], listing["broken"]) == (0, [], [])
    states = {row["family"]: row["state"] for row in listing["families"]}
    assert (states["family_good"], states["family_bad"]) == ("seam", "seam")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_finding_and_the_others_are_listed_as_before(
    name: str, place: Place, before: tuple[Table, set[Any]]
) -> None:
    force, code = FAULTS[name]
    listed_before, judged_before = before
    force(place)

    exit_code, listing = ran("list", "--json")

    assert [found["code"] for found in listing["findings"]] == [f"SEAM-{code}"]
    assert exit_code == ExitCode.FINDINGS
    (finding,) = listing["findings"]
    assert finding["subject"] in ("bad", "worse", "acme-bad", "acme_bad-1.0.dist-info")
    assert finding["asked"]
    assert finding["found"]
    assert finding["next"]
    assert others(listing) == others(listed_before)

    exit_code, gate = ran("check", "--format", "json")

    assert exit_code == ExitCode.FINDINGS
    # Neither has its source in this workspace, which the gate says of each that it can read.
    pairs = [(one["code"], one["subject"]) for one in gate["verdicts"]]
    new = [one for one in pairs if one not in judged_before and one != ("SEAM-O04", "bad")]
    assert new == [(f"SEAM-{code}", finding["subject"])]


@pytest.mark.parametrize("name", GATE)
def test_a_fault_that_the_gate_alone_looks_for_is_one_verdict(name: str, place: Place) -> None:
    force, code, severity = GATE[name]
    (place.cwd / "plugins").mkdir()
    # The source of both is in the tree, so that only what is forced is wrong.
    for package in ("acme_good", "acme_bad"):
        shutil.copytree(place.site / package, place.cwd / "plugins" / package)
    _, before = ran("list", "--json")
    _, judged = ran("check", "--format", "json")
    force(place)
    _, gate = ran("check", "--format", "json")
    new = [one for one in gate["verdicts"] if one not in judged["verdicts"]]
    assert [(one["code"], one["severity"]) for one in new] == [(f"SEAM-{code}", severity)]
    exit_code, listing = ran("list", "--json")
    assert exit_code == ExitCode.OK
    assert others(listing) == others(before)


@pytest.mark.parametrize("name", BUILD)
def test_a_fault_of_the_code_is_one_reason_not_to_build_and_nothing_to_the_audit(
    name: str, place: Place
) -> None:
    text, code = BUILD[name]
    # An import is for the whole process, so each case has a package of its own name.
    unique = f"acme_bad_{list(BUILD).index(name)}"
    shutil.rmtree(place.package)
    shutil.rmtree(place.info)
    install_plugin(place.site, "acme-bad", {unique: whole()})
    file = place.site / unique / "plugin.py"
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    (place.cwd / "recipe.toml").write_text(RECIPE)

    exit_code, listing = ran("list", "--json")
    assert (exit_code, listing["findings"]) == (0, [])
    plan = resolve(load_recipe(place.cwd / "recipe.toml"), read_environment())
    assert [seam.name for seam in plan.seams] == ["bad"]

    with pytest.raises(Refusal) as refused:
        load_plugins(plan.seams)

    (fault,) = refused.value.reasons
    assert fault.code == f"SEAM-{code}"
    assert refused.value.exit_code is ExitCode.REFUSED
    assert fault.subject == "bad"
    assert ran("list", "--json") == (exit_code, listing)
