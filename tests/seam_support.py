"""The parts of the planner's tests: seams, environments and recipes as values, and plugins laid
out on disk exactly as an installer leaves them.
"""

import base64
import contextlib
import datetime
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.version import Version

from megatron_seams.base.structure import structure
from megatron_seams.errors import Refusal, SeamsError
from megatron_seams.families import BUILT_IN, Family
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.seams.discovery import Discovery
from megatron_seams.seams.manifest import CAPABILITIES, parse_manifest
from megatron_seams.seams.seam import BrokenSeam, Seam
from megatron_seams.upstream.source import MegatronSource
from megatron_seams.upstream.surface import Exclusion, NativeSurface, NativeSymbol

Table = dict[str, Any]

TODAY = datetime.date(2026, 12, 1)

# --- TOML -------------------------------------------------------------------------------------


def toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """``table`` as TOML text; the standard library only reads it."""
    plain = {key: value for key, value in table.items() if not _is_section(value)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for key, value in table.items():
        path = f"{prefix}{_key(key)}"
        if isinstance(value, Mapping):
            lines += ["", f"[{path}]", toml(value, f"{path}.")]
        elif _is_section(value):
            for part in value:
                lines += ["", f"[[{path}]]", toml(part, f"{path}.")]
    return "\n".join(lines) + "\n"


def _is_section(value: Any) -> bool:
    tables = isinstance(value, list | tuple) and value and isinstance(value[0], Mapping)
    return isinstance(value, Mapping) or bool(tables)


def _key(key: str) -> str:
    bare = key.replace("-", "").replace("_", "")
    return key if bare.isascii() and bare.isalnum() else json.dumps(key, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, datetime.date):  # a datetime is one, too
        return value.isoformat()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False)


# --- manifests and seams ----------------------------------------------------------------------


def manifest_table(
    name: str = "kda",
    family: str = "kda",
    *,
    owner: str = "@acme/layers",
    status: str = "seam",
    fallback: str = "refuse",
    accepts: Mapping[str, Any] | None = None,
    slots: Iterable[str] = ("mamba_layer",),
    placement: str | None = None,
    requires: str = ">=0.17",
    supports: Iterable[str] = CAPABILITIES,
    meaning: str | None = None,
) -> Table:
    """A valid manifest; a family that core does not know is introduced.

    Args:
        accepts: With ``fallback="native"``, e.g. ``{"symbol-name": "MLA"}``.
        placement: A feature's placement; a layer's carrier is left out then.
        meaning: The summary of the ``[family]`` table.
    """
    table: Table = {
        "schema": 1,
        "seam": {
            "name": name,
            "family": family,
            "summary": f"The {name} test seam.",
            "owner": owner,
            "status": status,
            "introduced": datetime.date(2026, 11, 1),
            "review-by": datetime.date(2027, 5, 1),
        },
        "upstream": {"fallback": fallback, **(accepts or {})},
        "requires": {"megatron-core": requires},
        "supports": dict.fromkeys(supports, True),
    }
    if placement is None:
        table["carrier"] = {"slots": list(slots)}
    else:
        table["feature"] = {"placement": placement}
    if meaning is not None or family not in BUILT_IN:
        table["family"] = {"name": family, "summary": meaning or f"What {family} is."}
    return table


def make_seam(
    name: str = "kda",
    family: str = "kda",
    *,
    distribution: str | None = None,
    version: str = "1.0",
    **manifest: Any,
) -> Seam:
    """A seam as discovery returns it; see :func:`manifest_table` for the rest."""
    data = toml(manifest_table(name, family, **manifest)).encode()
    parsed, faults = parse_manifest(data, file="seam.toml")
    assert parsed is not None, faults
    return Seam(
        manifest=parsed,
        package=f"acme_{name}",
        distribution=distribution or f"acme-{name}",
        version=version,
        directory=Path("/nowhere") / f"acme_{name}",
        manifest_digest=hashlib.sha256(data).hexdigest(),
    )


# --- native surfaces --------------------------------------------------------------------------

_COMMON = ("config", "layer_number")
_ATTENTION = (*_COMMON, "pg_collection", "is_mtp_layer", "add_layer_offset", "pp_layer_offset")
_FEED_FORWARD = (*_COMMON, "pg_collection", "add_layer_offset", "name")

#: 0.19's symbols, in upstream's order; tests/test_surface.py holds this to the installed source.
SYMBOLS = tuple(
    NativeSymbol(constant=constant, symbol=symbol, slot=slot, keywords=keywords)
    for constant, symbol, slot, keywords in (
        ("MAMBA", "M", "mamba_layer", (*_COMMON, "pp_layer_offset", "pg_collection", "name")),
        ("GDN", "G", "gdn_layer", _FEED_FORWARD),
        ("ATTENTION", "*", "attention_layer", (*_ATTENTION, "name")),
        ("DS_ATTENTION", "D", "dsa_layer", (*_ATTENTION, "name")),
        ("MLA", "+", "mla_layer", _ATTENTION),
        ("MLP", "-", "mlp_layer", _FEED_FORWARD),
        ("MOE", "E", "moe_layer", _FEED_FORWARD),
    )
)


def surface(
    version: str = "0.19.2", *, without: Iterable[str] = (), exclusive: bool = True
) -> NativeSurface:
    """A surface like 0.19, less the constants ``without``; ``exclusive`` keeps ``*`` apart."""
    symbols = tuple(symbol for symbol in SYMBOLS if symbol.constant not in set(without))
    reason = "Not supported to have both Attention and MLA/DSA in one model"
    beside = tuple(
        Exclusion(operator="has", constant=symbol.constant, message=reason)
        for symbol in symbols
        if symbol.constant in ("DS_ATTENTION", "MLA")
    )
    attention = Exclusion(operator="has", constant="ATTENTION", message=reason)
    rule = Exclusion(
        operator="and",
        parts=(attention, Exclusion(operator="or", parts=beside, message=reason)),
        message=reason,
    )
    return NativeSurface(
        version=Version(version),
        origin="a test",
        symbols=symbols,
        slots=tuple(symbol.slot for symbol in symbols),
        separators=("|", "/"),
        exclusions=(rule,) if exclusive else (),
        digest="0" * 64,
    )


def environment(
    *seams: Seam,
    native: NativeSurface | None = None,
    broken: Iterable[BrokenSeam] = (),
    faults: Iterable[SeamsError] = (),
) -> Environment:
    """An environment with these seams and, by default, a Megatron like 0.19."""
    families = dict(BUILT_IN)
    for seam in seams:
        introduced = seam.manifest.family
        if introduced is not None:
            families[introduced.name] = Family(
                name=introduced.name, summary=introduced.summary, kind=seam.manifest.kind
            )
    return Environment(
        surface=surface() if native is None else native,
        discovery=Discovery(
            seams=tuple(sorted(seams, key=lambda seam: seam.name)),
            broken=tuple(broken),
            families=tuple(families.values()),
        ),
        faults=tuple(faults),
    )


def option_environment(seam: Seam) -> Environment:
    """A Megatron whose configuration has the field ``engram_layers``."""
    fields = b"    engram_layers: int = 0\n    hidden_size: int = 0\n"
    text = b"@dataclass\nclass TransformerConfig:\n" + fields
    source = MegatronSource(
        origin="a test",
        read=lambda path: text if path.endswith("transformer_config.py") else None,
    )
    made = environment(seam)
    return Environment(surface=made.surface, discovery=made.discovery, source=source)


# --- recipes and plans ------------------------------------------------------------------------


def recipe(
    pattern: str, *, dialect: str = "megatron", depth: int | None = None, **tables: Any
) -> Recipe:
    """A recipe; ``tables`` are its other tables as a TOML file would hold them.

    ``tokens`` stands for ``[dialect.tokens]``.
    """
    model: Table = {"name": "test model", "pattern": pattern, "dialect": dialect}
    if depth is not None:
        model["depth"] = depth
    if "tokens" in tables:
        tables["dialect"] = {"tokens": tables.pop("tokens")}
    made, faults = structure(Recipe, {"schema": 1, "model": model, **tables})
    assert made is not None, faults
    return made


def plan(asked: Recipe, where: Environment) -> Plan:
    """The plan, on the tests' own day."""
    return resolve(asked, where, today=TODAY)


def refusal(asked: Recipe, where: Environment) -> Refusal:
    """The refusal; a plan fails the test."""
    try:
        made = plan(asked, where)
    except Refusal as refused:
        return refused
    raise AssertionError(
        [(layer.token, layer.family, layer.provider.label) for layer in made.layers]
    )


def reasons(asked: Recipe, where: Environment) -> list[SeamsError]:
    """The reasons of the refusal; a plan fails the test."""
    return list(refusal(asked, where).reasons)


def only(found: list[SeamsError], kind: type[SeamsError]) -> SeamsError:
    """The one reason, which is of this kind."""
    assert [type(fault) for fault in found] == [kind], found
    return found[0]


# --- installed plugins and the command line ---------------------------------------------------


def install_plugin(
    site: Path,
    distribution: str,
    manifests: Mapping[str, Mapping[str, Any] | bytes | None],
    *,
    version: str = "1.0",
    entry_points: Mapping[str, str] | None = None,
    code: str = "",
) -> Path:
    """Lay a plugin out below ``site`` as ``pip install --target`` does, without running a build.

    Args:
        site: The folder that goes on PYTHONPATH.
        distribution: Its name.
        manifests: Dotted package -> its ``seam.toml``, as a table or as bytes; None for no file.
        entry_points: Seam name -> package; by default each manifest's own name.
        code: The text of every ``__init__.py`` and ``plugin.py``.

    Returns:
        The ``.dist-info`` folder.
    """
    files, named = _plugin_files(manifests, code)
    points = named if entry_points is None else dict(entry_points)
    info = f"{distribution.replace('-', '_')}-{version}.dist-info"
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n".encode()
    )
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    files[f"{info}/entry_points.txt"] = f"[megatron_seams]\n{lines}".encode()
    for path, data in files.items():
        file = site / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    write_record(site, info, files)
    return site / info


def source_plugin(
    project: Path,
    distribution: str,
    manifests: Mapping[str, Mapping[str, Any] | bytes | None],
    *,
    version: str = "1.0",
    entry_points: Mapping[str, Any] | None = None,
    code: str = "",
) -> Path:
    """Write the source of a plugin: a ``pyproject.toml`` and its packages below ``src``.

    Arguments as for :func:`install_plugin`; the result can be built, and installed as editable.
    """
    files, named = _plugin_files(manifests, code)
    points = named if entry_points is None else dict(entry_points)
    table = {
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "project": {
            "name": distribution,
            "version": version,
            "entry-points": {"megatron_seams": points},
        },
        "tool": {
            "hatch": {
                "build": {
                    "targets": {
                        "wheel": {
                            "packages": sorted({f"src/{it.partition('.')[0]}" for it in manifests})
                        }
                    }
                }
            }
        },
    }
    for path, data in {"pyproject.toml": toml(table).encode(), **files}.items():
        file = project / path if path == "pyproject.toml" else project / "src" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return project


def _plugin_files(
    manifests: Mapping[str, Mapping[str, Any] | bytes | None], code: str
) -> tuple[dict[str, bytes], dict[str, str]]:
    """The files of some packages, and the seam names that their manifests give them."""
    files: dict[str, bytes] = {}
    named: dict[str, str] = {}
    for package, manifest in manifests.items():
        parts = package.split(".")
        for depth in range(1, len(parts) + 1):
            files["/".join([*parts[:depth], "__init__.py"])] = code.encode()
        files["/".join([*parts, "plugin.py"])] = code.encode()
        if isinstance(manifest, bytes):
            files["/".join([*parts, "seam.toml"])] = manifest
        elif manifest is not None:
            files["/".join([*parts, "seam.toml"])] = toml(manifest).encode()
            named[manifest["seam"]["name"]] = package
    return files, named


def write_record(site: Path, info: str, files: Mapping[str, bytes]) -> None:
    """Write the ``RECORD`` that says which files a distribution installed."""
    rows = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in sorted(files.items())]
    (site / info / "RECORD").write_text("\n".join([*rows, f"{info}/RECORD,,", ""]))


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def registry(
    *arguments: str | Path,
    path: Iterable[Path] = (),
    cwd: Path | None = None,
    code: int | None = None,
    python: Path | str = sys.executable,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m megatron_seams`` in a process of its own.

    Args:
        path: Folders that go first on PYTHONPATH.
        cwd: The working directory, which ``-m`` puts before everything.
        code: The exit code to insist on.
        variables: Environment variables.
    """
    return run_python(
        "-m",
        "megatron_seams",
        *arguments,
        path=path,
        cwd=cwd,
        code=code,
        python=python,
        **variables,
    )


def run_python(
    *arguments: str | Path,
    path: Iterable[Path] = (),
    cwd: Path | None = None,
    code: int | None = None,
    python: Path | str = sys.executable,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run Python as a user's shell would; arguments as for :func:`registry`."""
    kept = os.environ.get("PYTHONPATH", "")
    folders = [*map(str, path), *([kept] if kept else [])]
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), **variables}
    # Only the test sets the variables that decide on colour.
    for name in {"FORCE_COLOR", "NO_COLOR", "COLUMNS"} - set(variables):
        settings.pop(name, None)
    done = subprocess.run(
        [str(python), *map(str, arguments)],
        cwd=cwd,
        env=settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if code is not None:
        assert done.returncode == code, done.stdout + done.stderr
    return done


def listed(*, path: Iterable[Path] = (), cwd: Path | None = None) -> Table:
    """``registry list --json``, parsed."""
    done = registry("list", "--json", path=path, cwd=cwd)
    assert done.returncode in (0, 1, 3), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    found: Table = json.loads(done.stdout)
    return found


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Without the rights of root, who may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
