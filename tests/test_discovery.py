"""Discovery on real layouts: what an installer leaves on disk, found without importing it.

Each environment holds several faults at once; every test also shows that none hides another.
"""

import json
import shutil
from pathlib import Path

import pytest

from megatron_seams.upstream.locate import importable_megatron
from seam_support import (
    Table,
    install_plugin,
    listed,
    manifest_table,
    registry,
    run_python,
    toml,
    write_record,
)


def findings(found: Table, subject: str) -> list[Table]:
    """The findings about one seam."""
    return [finding for finding in found["findings"] if finding["subject"] == subject]


def codes(found: Table) -> dict[str, list[str]]:
    """Subject -> error names."""
    named: dict[str, list[str]] = {}
    for finding in found["findings"]:
        named.setdefault(finding["subject"], []).append(finding["error"])
    return named


def seams(found: Table) -> dict[str, Table]:
    """Seam name -> its row, over all families."""
    return {seam["name"]: seam for family in found["families"] for seam in family["seams"]}


def plugin(site: Path, name: str, **manifest: object) -> Path:
    """Install ``acme-NAME`` with one seam NAME, a sound one unless told otherwise."""
    table = manifest_table(name, f"family_{name}", **manifest)  # type: ignore[arg-type]
    return install_plugin(site, f"acme-{name}", {f"acme_{name}": table})


def change(site: Path, name: str, /, **keys: object) -> None:
    """Change ``[seam]`` keys in an installed manifest."""
    table = manifest_table(name, f"family_{name}")
    table["seam"].update(keys)
    (site / f"acme_{name}" / "seam.toml").write_text(toml(table))


def test_every_fault_of_an_environment_is_found_and_none_hides_another(tmp_path: Path) -> None:
    site = tmp_path / "site"
    plugin(site, "sound")
    plugin(site, "unread")
    (site / "acme_unread" / "seam.toml").write_bytes(b"\xff")
    plugin(site, "typed")
    change(site, "typed", owner=3, colour="red")
    plugin(site, "ranged", requires=">=0.1,<0.2")
    plugin(site, "misnamed")
    change(site, "misnamed", name="other")
    plugin(site, "gone")
    shutil.rmtree(site / "acme_gone")
    install_plugin(site, "acme-bare", {"acme_bare": None}, entry_points={"bare": "acme_bare"})
    for name, target in (("attribute", "acme_sound:seam"), ("spaced", "acme sound")):
        install_plugin(site, f"acme-{name}", {}, entry_points={name: target})
    install_plugin(site, "acme-script", {}, entry_points={"script": "acme_script"})
    (site / "acme_script.py").write_text("raise SystemExit\n")
    plugin(site, "linked")
    secret = tmp_path / "elsewhere.toml"
    (site / "acme_linked" / "seam.toml").rename(secret)
    (site / "acme_linked" / "seam.toml").symlink_to(secret)

    found = listed(path=[site], cwd=tmp_path)

    named = codes(found)
    assert named["unread"] == ["ManifestUnreadable"]
    assert named["ranged"] == ["WrongMegatron"]
    assert named["misnamed"] == ["EntryPointInvalid"]
    assert named["gone"] == ["ManifestMissing"]
    assert named["bare"] == ["ManifestMissing"]
    assert named["attribute"] == ["EntryPointInvalid"]
    assert named["spaced"] == ["EntryPointInvalid"]
    assert named["script"] == ["ManifestMissing"]
    assert named["linked"] == ["ManifestUnreadable"]
    assert "sound" not in named
    typed = findings(found, "typed")
    assert all("acme-typed 1.0" in finding["asked"] for finding in typed)
    assert all(finding["file"].endswith("acme_typed/seam.toml") for finding in typed)
    assert [(finding["error"], finding["key"]) for finding in typed] == [
        ("ManifestInvalid", "seam.colour"),
        ("ManifestInvalid", "seam.owner"),
    ]
    assert seams(found)["sound"]["state"] == "seam"
    assert seams(found)["ranged"]["state"] == "broken"
    (ranged,) = findings(found, "ranged")
    assert ">=0.1,<0.2" in ranged["found"]
    (linked,) = findings(found, "linked")
    assert str(secret) in linked["found"]
    assert "acme-misnamed" in findings(found, "misnamed")[0]["asked"]
    assert "'other'" in findings(found, "misnamed")[0]["found"]
    assert all(finding["next"] for finding in found["findings"])


def test_a_damaged_installation_does_not_hide_the_others(tmp_path: Path) -> None:
    site = tmp_path / "site"
    plugin(site, "sound")
    half = plugin(site, "half")  # an interrupted uninstallation
    (half / "METADATA").unlink()
    binary = plugin(site, "binary")
    (binary / "entry_points.txt").write_bytes(b"\xff\xfe[megatron_seams]\n")
    loose = plugin(site, "loose")
    (loose / "entry_points.txt").write_text("[megatron_seams]\nloose\n")
    odd = plugin(site, "odd")
    (odd / "direct_url.json").write_text("{")
    other = site / "other-1.0.dist-info"  # not a plugin of ours, and none of our business
    other.mkdir()
    (other / "METADATA").write_text("Name: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[console_scripts]\nbroken\n")
    (site / "empty-1.0.dist-info").mkdir()

    found = listed(path=[site], cwd=tmp_path)

    assert {"sound", "odd"} <= set(seams(found))
    named = codes(found)
    assert named["half"] == ["EntryPointInvalid"]
    assert named["acme-binary"] == ["EntryPointInvalid"]
    assert named["acme-loose"] == ["EntryPointInvalid"]
    assert "other" not in named
    assert not [subject for subject in named if subject.startswith("empty")]


def test_a_same_named_folder_in_the_working_directory_is_shadowed(tmp_path: Path) -> None:
    site, here = tmp_path / "site", tmp_path / "here"
    plugin(site, "kda")
    plugin(site, "file")
    plugin(site, "sound")
    shutil.copytree(site / "acme_kda", here / "acme_kda")  # the very same text, and not installed
    (here / "acme_file.py").write_text("")

    found = listed(path=[site], cwd=here)

    assert codes(found) == {"kda": ["Shadowed"], "file": ["Shadowed"]}
    (shadowed,) = findings(found, "kda")
    assert shadowed["file"] == str(here / "acme_kda")
    assert "acme-kda 1.0" in shadowed["asked"]
    assert set(seams(found)) >= {"sound"}
    assert not {"kda", "file"} & set(seams(found))
    elsewhere = listed(path=[site], cwd=tmp_path)
    assert {"kda", "file", "sound"} <= set(seams(elsewhere))
    assert not elsewhere["findings"]


def test_a_folder_of_a_namespace_that_happens_to_be_there_shadows_nothing(tmp_path: Path) -> None:
    site, here = tmp_path / "site", tmp_path / "here"
    plugin(site, "kda")
    (here / "acme_kda" / "results").mkdir(parents=True)  # no __init__.py: an import passes it over
    assert "kda" in seams(listed(path=[site], cwd=here))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_name_from_two_distributions_is_a_conflict_in_any_order(
    order: tuple[int, int], tmp_path: Path
) -> None:
    sites = [tmp_path / "one", tmp_path / "two"]
    for site, owner in zip(sites, ("acme", "rapid"), strict=True):
        table = manifest_table("twice", "twice", owner=f"@{owner}/layers", meaning="The same.")
        install_plugin(site, f"{owner}-twice", {f"{owner}_twice": table})
    plugin(sites[0], "sound")

    found = listed(path=[sites[i] for i in order], cwd=tmp_path)

    (finding,) = findings(found, "twice")
    assert finding["error"] == "DuplicateName"
    places = (sites[0] / "acme_twice-1.0.dist-info", sites[1] / "rapid_twice-1.0.dist-info")
    assert f"acme-twice 1.0 (acme_twice, {places[0]})" in finding["found"]
    assert f"rapid-twice 1.0 (rapid_twice, {places[1]})" in finding["found"]
    assert "twice" not in seams(found)
    assert "sound" in seams(found)
    assert [broken["distribution"] for broken in found["broken"]] == ["acme-twice", "rapid-twice"]


def test_the_same_distribution_seen_twice_on_the_path_is_no_conflict(tmp_path: Path) -> None:
    site, copy, link = tmp_path / "site", tmp_path / "copy", tmp_path / "link"
    plugin(site, "kda")
    shutil.copytree(site, copy)
    link.symlink_to(site)
    found = listed(path=[site, site, link, copy], cwd=tmp_path)
    assert not found["findings"]
    assert "kda" in seams(found)


def test_of_two_versions_on_the_path_the_first_is_what_runs(tmp_path: Path) -> None:
    for version in ("1.0", "2.0"):
        table = manifest_table("kda", "family_kda")
        install_plugin(tmp_path / version, "acme-kda", {"acme_kda": table}, version=version)
    for first, second in (("1.0", "2.0"), ("2.0", "1.0")):
        found = listed(path=[tmp_path / first, tmp_path / second], cwd=tmp_path)
        assert seams(found)["kda"]["version"] == first
        assert not found["findings"]


def test_two_records_of_one_distribution_in_one_folder_are_a_conflict(tmp_path: Path) -> None:
    table = manifest_table("kda", "family_kda")
    for version in ("1.0", "2.0"):  # an upgrade that left the old record behind
        install_plugin(tmp_path, "acme-kda", {"acme_kda": table}, version=version)
    found = listed(path=[tmp_path], cwd=tmp_path)
    assert codes(found)["kda"] == ["DuplicateName"]
    shown = findings(found, "kda")[0]["found"]
    for version in ("1.0", "2.0"):
        record = tmp_path / f"acme_kda-{version}.dist-info"
        assert f"acme-kda {version} (acme_kda, {record})" in shown


def test_several_seams_of_one_distribution_are_found_without_importing_their_parent(
    tmp_path: Path,
) -> None:
    mark = tmp_path / "imported"
    code = f"open({str(mark)!r}, 'w').close()\nraise RuntimeError('imported')\n"
    manifests = {
        f"acme_many.{name}": manifest_table(name, f"family_{name}") for name in ("one", "two")
    }
    install_plugin(tmp_path / "site", "acme-many", manifests, code=code)
    # The manifest must not be tied to its package by the parent's own folder.
    (tmp_path / "site" / "acme_many" / "seam.toml").write_text("not read")
    found = listed(path=[tmp_path / "site"], cwd=tmp_path)
    assert {"one", "two"} <= set(seams(found))
    assert not found["findings"]
    assert not mark.exists()


def test_two_distributions_may_share_a_namespace_package(tmp_path: Path) -> None:
    for name in ("one", "two"):
        site = tmp_path / name
        package = f"acme_shared.{name}"
        install_plugin(site, f"acme-{name}", {package: manifest_table(name, f"family_{name}")})
        (site / "acme_shared" / "__init__.py").unlink()
    found = listed(path=[tmp_path / "one", tmp_path / "two"], cwd=tmp_path)
    assert {"one", "two"} <= set(seams(found))
    assert not found["findings"]


def test_two_distributions_in_one_folder_do_not_answer_for_each_others_files(
    tmp_path: Path,
) -> None:
    plugin(tmp_path, "kda")
    install_plugin(tmp_path, "acme-thief", {}, entry_points={"thief": "acme_kda"})
    found = listed(path=[tmp_path], cwd=tmp_path)
    assert codes(found) == {"thief": ["Shadowed"]}
    assert "kda" in seams(found)


def editable(project: Path, site: Path, name: str, *, source: str) -> None:
    """An editable installation: the record of the folder, and a path file or finder."""
    package = project / source / f"acme_{name}"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "seam.toml").write_text(toml(manifest_table(name, f"family_{name}")))
    info = install_plugin(site, f"acme-{name}", {}, entry_points={name: f"acme_{name}"})
    record = {"url": project.as_uri(), "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(record))
    (site / f"__editable__.acme_{name}.pth").write_text(f"{project / source}\n")
    write_record(site, info.name, {f"__editable__.acme_{name}.pth": b""})


def test_editable_installations_are_found_and_may_be_shadowed_too(tmp_path: Path) -> None:
    site, here = tmp_path / "site", tmp_path / "here"
    site.mkdir()
    editable(tmp_path / "a project", site, "kda", source="src")
    editable(tmp_path / "flat", site, "flat", source=".")
    shutil.copytree(tmp_path / "flat" / "acme_flat", here / "acme_flat")
    # A path file is read from a site folder alone, which PYTHONPATH does not make of it.
    program = (
        f"import site; site.addsitedir({str(site)!r}); from megatron_seams.cli import main;"
        "import sys; sys.argv[1:] = ['list', '--json']; main()"
    )
    found = json.loads(run_python("-c", program, cwd=tmp_path, code=0).stdout)
    assert {"kda", "flat"} <= set(seams(found))
    shadowed = json.loads(run_python("-c", program, cwd=here, code=1).stdout)
    assert codes(shadowed) == {"flat": ["Shadowed"]}
    assert "kda" in seams(shadowed)


def test_families_that_manifests_disagree_on_are_conflicts(tmp_path: Path) -> None:
    def install(name: str, family: str, meaning: str | None = None, **manifest: object) -> None:
        table = manifest_table(name, family, meaning=meaning, **manifest)  # type: ignore[arg-type]
        install_plugin(tmp_path, f"acme-{name}", {f"acme_{name}": table})

    install("says", "disputed", "Delta rule.")
    install("contradicts", "disputed", "Something else.")
    install("agrees", "shared", "One meaning.")
    install("concurs", "shared", "One meaning.")
    install("rewrites", "mamba", "What I say it is.")
    install("layered", "ngram")  # a feature family, as a layer
    install("beside", "moe", placement="embedding")  # a block family, as a feature
    orphan = manifest_table("orphan", "orphaned")
    del orphan["family"]
    install_plugin(tmp_path, "acme-orphan", {"acme_orphan": orphan})

    found = listed(path=[tmp_path], cwd=tmp_path)

    named = codes(found)
    for name in ("says", "contradicts", "rewrites", "layered", "beside", "orphan"):
        assert named[name] == ["FamilyConflict"], name
    assert not {"agrees", "concurs"} & set(named)
    for name in ("says", "contradicts"):
        shown = findings(found, name)[0]["found"]
        assert "'Delta rule.'" in shown
        assert "'Something else.'" in shown
        assert "acme-says 1.0" in shown
        assert "acme-contradicts 1.0" in shown
    families = {family["family"]: family for family in found["families"]}
    assert "disputed" not in families
    assert families["shared"]["summary"] == "One meaning."
    assert families["shared"]["state"] == "refused"  # two seams, and no one pinned
    assert families["mamba"]["state"] == "native"


def test_a_clone_of_megatron_beside_the_installed_one_is_a_finding_that_names_both(
    tmp_path: Path,
) -> None:
    source, _ = importable_megatron()
    assert source is not None
    installed = Path(source.origin)
    clone = tmp_path / "clone"
    for part in ("core/package_info.py", "core/models/hybrid", "core/__init__.py"):
        target = clone / "megatron" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if (installed / part).is_dir():
            shutil.copytree(installed / part, target)
        else:
            shutil.copy(installed / part, target)
    info = clone / "megatron" / "core" / "package_info.py"
    info.write_text(info.read_text().replace("MINOR = 19", "MINOR = 42"))

    done = registry("list", "--json", path=[clone], cwd=tmp_path, code=1)
    found = json.loads(done.stdout)
    version = source.version()
    (finding,) = findings(found, "megatron-core")
    assert finding["error"] == "MegatronDiffers"
    assert f"0.42.{version.micro}" in finding["found"]
    assert str(clone / "megatron" / "core") in finding["found"]
    assert str(version) in finding["found"]
    assert str(installed) in finding["found"]
    # It plans with what would run, and says so.
    assert found["megatron_core"]["version"].startswith("0.42.")
    assert found["megatron_core"]["origin"] == str(clone / "megatron")

    info.write_text("MAJOR = compute()\n")
    done = registry("list", "--json", path=[clone], cwd=tmp_path)
    errors = {finding["error"] for finding in json.loads(done.stdout)["findings"]}
    assert {"MegatronDiffers", "SurfaceUnknown"} <= errors


def test_the_megatron_that_is_installed_is_no_finding(tmp_path: Path) -> None:
    assert not findings(listed(cwd=tmp_path), "megatron-core")


def test_the_listing_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in ("b", "a", "c"):
        plugin(site, name)
    (site / "acme_a" / "seam.toml").write_text("?")
    outputs = {
        registry("list", "--json", path=[site], cwd=tmp_path, PYTHONHASHSEED=seed).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1
