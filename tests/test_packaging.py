"""Files that installers leave, and leave behind: found as they are, with a next step that works."""

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_seams.errors import SeamsError
from megatron_seams.records.seam_digests import code_digest
from megatron_seams.seams.discovery import Discovery, discover
from seam_support import install_plugin, manifest_table, toml

Found = Callable[..., Discovery]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Found:
    """The seams found with some folders first on the path."""

    def look(*folders: Path) -> Discovery:
        monkeypatch.setattr(sys, "path", [*map(str, folders), *sys.path])
        return discover()

    return look


def plugin(site: Path, **options: object) -> Path:
    """A plugin that is sound; gives its record."""
    table = manifest_table("kda9", "kda9")
    return install_plugin(site, "acme-kda9", {"acme_kda9": table}, **options)  # type: ignore[arg-type]


def only(discovery: Discovery) -> SeamsError:
    """The one fault of the plugin."""
    broken = [one for one in discovery.broken if one.distribution.startswith("acme-kda9")]
    (fault,) = {fault for one in broken for fault in one.faults}
    return fault


def names(discovery: Discovery) -> list[str]:
    return [seam.name for seam in discovery.seams]


def test_a_record_that_hides_a_seam_is_named_and_what_it_advises_helps(
    tmp_path: Path, found: Found
) -> None:
    later, earlier = tmp_path / "later", tmp_path / "earlier"
    plugin(later)
    empty = earlier / "acme_kda9-0.9.dist-info"
    empty.mkdir(parents=True)
    fault = only(found(earlier, later))
    assert fault.code == "SEAM-D01"
    assert f"the record {empty}, which comes first on the path and has no METADATA" in fault.found
    assert fault.next.startswith(f"delete {empty}")
    empty.rmdir()
    assert "kda9" in names(found(earlier, later))


def test_a_newer_record_without_the_seam_is_an_upgrade_and_an_older_one_hides_it(
    tmp_path: Path, found: Found
) -> None:
    later = tmp_path / "later"
    plugin(later)
    newer = tmp_path / "newer"
    install_plugin(newer, "acme-kda9", {}, version="2.0", entry_points={})
    assert not [one for one in found(newer, later).broken if "kda9" in one.name]
    older = tmp_path / "older"
    install_plugin(older, "acme-kda9", {}, version="0.9", entry_points={})
    assert "says version 0.9" in only(found(older, later)).found


def test_two_records_in_one_folder_are_named_with_their_places(
    tmp_path: Path, found: Found
) -> None:
    stale = plugin(tmp_path, version="0.9")
    new = plugin(tmp_path)
    fault = only(found(tmp_path))
    assert fault.code == "SEAM-D06"
    assert str(stale) in fault.found
    assert str(new) in fault.found
    assert fault.next == "reinstall acme-kda9, or delete the records that are stale"


def test_what_a_removal_leaves_is_no_distribution(tmp_path: Path, found: Found) -> None:
    plugin(tmp_path).rename(tmp_path / "~cme_kda9-1.0.dist-info")
    plugin(tmp_path)
    discovery = found(tmp_path)
    assert "kda9" in names(discovery)
    assert not [one for one in discovery.broken if "kda9" in one.name]


def test_entry_points_with_colons_are_described_in_words(tmp_path: Path, found: Found) -> None:
    (plugin(tmp_path) / "entry_points.txt").write_text("[megatron_seams]\nkda9: acme_kda9\n")
    assert "no list of `name = package`" in only(found(tmp_path)).found


def test_a_wheel_on_the_path_is_to_be_installed(tmp_path: Path, found: Found) -> None:
    plugin(tmp_path / "site")
    wheel = tmp_path / "acme_kda9-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in sorted((tmp_path / "site").rglob("*")):
            archive.write(file, file.relative_to(tmp_path / "site").as_posix())
    fault = only(found(wheel))
    assert fault.code == "SEAM-D02"
    assert f"installed in the archive {wheel}" in fault.found
    assert fault.next == "install the wheel, or unpack the archive"


def editable(site: Path, project: Path) -> Path:
    """The record of an editable installation, without what leads to the project."""
    info = plugin(site)
    for file in (site / "acme_kda9").iterdir():
        file.unlink()
    (site / "acme_kda9").rmdir()
    (info / "RECORD").unlink()
    record = {"url": project.as_uri(), "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(record))
    package = project / "src" / "acme_kda9"
    package.mkdir(parents=True)
    for name in ("__init__.py", "plugin.py"):
        (package / name).touch()
    (package / "seam.toml").write_text(toml(manifest_table("kda9", "kda9")))
    return package


def test_setuptools_strict_tree_of_links_is_the_project(tmp_path: Path, found: Found) -> None:
    project = tmp_path / "project"
    package = editable(tmp_path / "site", project)
    links = project / "build" / "__editable__.acme_kda9-1.0-py3-none-any" / "acme_kda9"
    links.mkdir(parents=True)
    for file in package.iterdir():
        (links / file.name).symlink_to(file)
    discovery = found(links.parent, tmp_path / "site")
    assert "kda9" in names(discovery)
    (seam,) = (it for it in discovery.seams if it.name == "kda9")
    before = code_digest(seam)
    (package / "plugin.py").write_text("1\n")
    assert code_digest(seam) != before


def test_a_link_out_of_an_editable_project_is_none_of_its_files(
    tmp_path: Path, found: Found
) -> None:
    package = editable(tmp_path / "site", tmp_path / "project")
    (package / "seam.toml").rename(tmp_path / "elsewhere.toml")
    (package / "seam.toml").symlink_to(tmp_path / "elsewhere.toml")
    assert "outside its package" in only(found(package.parent, tmp_path / "site")).found


def test_an_editable_project_that_no_path_leads_to_is_named_with_what_helps(
    tmp_path: Path, found: Found
) -> None:
    project = tmp_path / "project"
    package = editable(tmp_path / "site", project)
    fault = only(found(tmp_path / "site"))
    assert fault.code == "SEAM-D02"
    assert f"the project in {project} is installed as editable" in fault.found
    assert "put the folder of acme_kda9 on PYTHONPATH" in fault.next
    assert "kda9" in names(found(package.parent, tmp_path / "site"))
