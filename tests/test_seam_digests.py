"""Digests of a seam's code: all that an import would run, and nothing that comes and goes."""

import json
import os
import py_compile
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_seams.records.seam_digests import code_digest
from megatron_seams.seams.discovery import discover
from megatron_seams.seams.seam import Seam
from seam_support import install_plugin, manifest_table, run_python, source_plugin

UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH
CHECKED = py_compile.PycInvalidationMode.CHECKED_HASH
TIMESTAMP = py_compile.PycInvalidationMode.TIMESTAMP


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with ``acme-kda``: the package of the seam, and another one."""
    folder = tmp_path / "site"
    install_plugin(
        folder,
        "acme-kda",
        {"acme_kda": manifest_table("kda", "kda"), "acme_ops": None},
        code="VALUE = 1\n",
    )
    monkeypatch.syspath_prepend(str(folder))
    return folder


def seam() -> Seam:
    (found,) = [it for it in discover().seams if it.name == "kda"]
    return found


def digest() -> str:
    return code_digest(seam())


def compiled(source: Path, code: str, mode: py_compile.PycInvalidationMode) -> Path:
    """Byte code of another text, where an import looks for that of a source."""
    other = source.with_name("other_text.py")
    other.write_text(code)
    os.utime(other, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    cache = Path(
        py_compile.compile(
            str(other),
            cfile=str(
                source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
            ),
            invalidation_mode=mode,
            doraise=True,
        )
    )
    other.unlink()
    return cache


def runs(site: Path, module: str) -> int:
    """The value of a module for a process that imports it."""
    done = run_python("-c", f"import {module}; print({module}.VALUE)", path=[site], code=0)
    return int(done.stdout)


# --- what an import would run -----------------------------------------------------------------


@pytest.mark.parametrize("mode", [UNCHECKED, TIMESTAMP])
def test_byte_code_that_runs_in_the_place_of_its_source_differs(
    mode: py_compile.PycInvalidationMode, site: Path
) -> None:
    before = digest()
    source = site / "acme_kda" / "plugin.py"
    compiled(source, "VALUE = 2\n", mode)
    assert runs(site, "acme_kda.plugin") == 2
    assert digest() != before


def test_byte_code_that_an_import_does_not_take_does_not_differ(site: Path) -> None:
    before = digest()
    source = site / "acme_kda" / "plugin.py"
    compiled(source, "VALUE = 2\n", CHECKED)
    assert runs(site, "acme_kda.plugin") == 1
    assert digest() == before


@pytest.mark.parametrize("mode", [UNCHECKED, CHECKED, TIMESTAMP])
def test_byte_code_that_says_what_its_source_says_does_not_differ(
    mode: py_compile.PycInvalidationMode, site: Path
) -> None:
    before = digest()
    compiled(site / "acme_kda" / "plugin.py", "VALUE = 1\n", mode)
    assert digest() == before


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 40])
def test_byte_code_that_is_none_does_not_differ(content: bytes, site: Path) -> None:
    before = digest()
    cache = site / "acme_kda" / "__pycache__"
    cache.mkdir()
    (cache / f"plugin.{sys.implementation.cache_tag}.pyc").write_bytes(content)
    assert digest() == before


def test_a_plugin_shipped_as_byte_code_alone_differs_with_its_code(site: Path) -> None:
    found = set()
    for value in (1, 2):
        source = site / "acme_kda" / "plugin.py"
        source.write_text(f"VALUE = {value}\n")
        py_compile.compile(str(source), cfile=str(source.with_suffix(".pyc")), doraise=True)
        source.unlink()
        assert runs(site, "acme_kda.plugin") == value
        found.add(digest())
    assert len(found) == 2


def test_byte_code_beside_its_source_is_not_run_and_does_not_differ(site: Path) -> None:
    before = digest()
    source = site / "acme_kda" / "plugin.py"
    cache = compiled(source, "VALUE = 2\n", UNCHECKED)
    shutil.move(cache, source.with_suffix(".pyc"))
    assert runs(site, "acme_kda.plugin") == 1
    assert digest() == before


def test_a_linked_folder_differs_with_what_it_leads_to(site: Path, tmp_path: Path) -> None:
    inner = tmp_path / "elsewhere"
    inner.mkdir()
    (inner / "__init__.py").write_text("VALUE = 1\n")
    (site / "acme_kda" / "inner").symlink_to(inner)
    before = digest()
    (inner / "__init__.py").write_text("VALUE = 2\n")
    assert digest() != before


def test_a_linked_file_differs_with_what_it_leads_to(site: Path, tmp_path: Path) -> None:
    (tmp_path / "table.bin").write_bytes(b"1")
    (site / "acme_kda" / "table.bin").symlink_to(tmp_path / "table.bin")
    before = digest()
    (tmp_path / "table.bin").write_bytes(b"2")
    assert digest() != before


def test_a_circle_of_links_ends(site: Path) -> None:
    (site / "acme_kda" / "round").symlink_to(site / "acme_kda")
    (site / "acme_kda" / "nowhere").symlink_to(site / "gone")
    assert digest()


@pytest.mark.parametrize("name", ["acme_ops/__init__.py", "acme_ops/new.py", "acme_kda/new.py"])
def test_every_package_of_the_distribution_is_covered(name: str, site: Path) -> None:
    before = digest()
    (site / name).write_text("VALUE = 2\n")
    assert digest() != before


@pytest.mark.parametrize(
    "name", ["csrc/scan.cu", "kernels.so", "table.json", "deep/er/module.py", ".libs/libx.so"]
)
def test_extension_modules_and_data_are_covered(name: str, site: Path) -> None:
    before = digest()
    file = site / "acme_kda" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"1")
    added = digest()
    assert added != before
    file.write_bytes(b"2")
    assert digest() != added


def test_a_distribution_s_single_modules_are_covered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    info = install_plugin(site, "acme-kda", {"acme_kda": manifest_table("kda", "kda")})
    (site / "acme_single.py").write_text("VALUE = 1\n")
    (info / "RECORD").write_text((info / "RECORD").read_text() + "acme_single.py,,\n")
    monkeypatch.syspath_prepend(str(site))
    before = digest()
    (site / "acme_single.py").write_text("VALUE = 2\n")
    assert digest() != before


def test_another_distribution_in_the_same_folder_is_none_of_it(site: Path) -> None:
    before = digest()
    install_plugin(site, "acme-gla", {"acme_gla": manifest_table("gla", "gla")})
    assert digest() == before


def test_a_namespace_that_distributions_share_is_not_covered_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    info = install_plugin(site, "acme-kda", {"acme.kda": manifest_table("kda", "kda")})
    (site / "acme" / "__init__.py").unlink()
    record = (info / "RECORD").read_text().splitlines()
    (info / "RECORD").write_text("\n".join(it for it in record if "acme/__init__" not in it) + "\n")
    monkeypatch.syspath_prepend(str(site))
    before = digest()
    (site / "acme" / "gla").mkdir()
    (site / "acme" / "gla" / "__init__.py").touch()
    assert digest() == before
    (site / "acme" / "kda" / "plugin.py").write_text("VALUE = 2\n")
    assert digest() != before


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source of a plugin that is installed editable, with a second package."""
    folder = source_plugin(
        tmp_path / "project",
        "acme-kda",
        {"acme_kda": manifest_table("kda", "kda"), "acme_ops": None},
        code="VALUE = 1\n",
    )
    site = tmp_path / "site"
    info = install_plugin(site, "acme-kda", {}, entry_points={"kda": "acme_kda"})
    record = {"url": folder.as_uri(), "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(record))
    for path in (folder / "src", site):
        monkeypatch.syspath_prepend(str(path))
    return folder


def test_every_package_of_an_editable_project_is_covered(project: Path) -> None:
    before = digest()
    (project / "src" / "acme_ops" / "__init__.py").write_text("VALUE = 2\n")
    assert digest() != before


def test_an_editable_plugin_and_its_wheel_have_one_digest(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editable = digest()
    for path in (project / "src", tmp_path / "site"):
        monkeypatch.setattr(sys, "path", [it for it in sys.path if it != str(path)])
    wheel = tmp_path / "wheel"
    install_plugin(
        wheel,
        "acme-kda",
        {"acme_kda": manifest_table("kda", "kda"), "acme_ops": None},
        code="VALUE = 1\n",
    )
    monkeypatch.syspath_prepend(str(wheel))
    assert digest() == editable


# --- what comes and goes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("plugin.py~", ".plugin.py.swp", ".#plugin.py", "#plugin.py#", "plugin.py.tmp", "4913"),
        *("__pycache__/plugin.cpython-312.pyc.140234", ".nfs000001", ".DS_Store", "x.bak"),
        *(".ipynb_checkpoints/plugin.py", ".mypy_cache/3.12/x.json", ".plugin.lock"),
    ],
)
def test_files_of_editors_and_tools_do_not_differ(name: str, site: Path) -> None:
    before = digest()
    file = site / "acme_kda" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"1")
    assert digest() == before


def test_manifests_are_not_code(site: Path) -> None:
    before = digest()
    manifest = site / "acme_kda" / "seam.toml"
    manifest.write_text(manifest.read_text() + "# a comment\n")
    assert digest() == before


_IMPORTS = """\
import shutil, subprocess, sys
while True:
    shutil.rmtree("acme_kda/__pycache__", ignore_errors=True)
    shutil.rmtree("acme_ops/__pycache__", ignore_errors=True)
    subprocess.run([sys.executable, "-c", "import acme_kda.plugin, acme_ops"], check=True)
"""


@pytest.fixture
def importing(site: Path) -> Iterator[None]:
    """Another process imports the plugin again and again, and removes what that writes."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with subprocess.Popen([sys.executable, "-S", "-c", _IMPORTS], cwd=site, env=environment) as it:
        yield
        assert it.poll() is None
        it.kill()


@pytest.mark.usefixtures("importing")
def test_a_thousand_digests_while_another_process_imports_are_one_value(site: Path) -> None:
    found: set[str] = set()
    seen: set[bool] = set()
    one = seam()

    def take() -> None:
        for _ in range(250):
            found.add(code_digest(one))
            seen.add(any((site / "acme_kda").glob("__pycache__/*")))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1
    assert seen == {True, False}  # the other process was at work
