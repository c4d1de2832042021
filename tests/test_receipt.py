"""Receipts: the same bytes for the same plan, and every way in which an environment differs."""

import datetime
import json
import random
import shutil
from pathlib import Path

import pytest

from megatron_seams.base.canonical_json import json_text
from megatron_seams.errors import (
    NoProvider,
    ReceiptDiffers,
    ReceiptUnreadable,
    SeamsError,
)
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.pattern import MAX_DEPTH
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.records.receipt import make_receipt, read_receipt, receipt_digest
from megatron_seams.records.software import MAX_BYTES
from megatron_seams.records.verify import verify
from megatron_seams.seams.discovery import discover
from megatron_seams.upstream.locate import importable_megatron, open_megatron
from megatron_seams.upstream.surface import NativeSurface, read_surface
from seam_support import (
    TODAY,
    Table,
    install_plugin,
    manifest_table,
    recipe,
    registry,
    toml,
)

HYBRID = "core/models/hybrid"


@pytest.fixture(scope="module")
def native() -> NativeSurface:
    """The surface of the installed Megatron."""
    source, _ = importable_megatron()
    assert source is not None
    return read_surface(source)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with the plugin ``acme-kda``."""
    folder = tmp_path / "site"
    install_kda(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def install_kda(folder: Path, *, version: str = "1.0", **manifest: object) -> None:
    table = manifest_table("kda", "kda", **manifest)  # type: ignore[arg-type]
    install_plugin(
        folder, "acme-kda", {"acme_parts.kda": table}, version=version, code="VALUE = 1\n"
    )


def asked(**tables: object) -> Recipe:
    return recipe("MK|MK", tokens={"K": "kda"}, seams={"kda": {"heads": 4}}, **tables)


def here(native: NativeSurface) -> Environment:
    return Environment(surface=native, discovery=discover())


def write(path: Path, native: NativeSurface, model: Recipe | None = None) -> Path:
    """A receipt of the model in the environment as it is."""
    model = model or asked()
    path.write_text(make_receipt(resolve(model, here(native), today=TODAY), model))
    return path


def differences(receipt: Path, native: NativeSurface) -> list[SeamsError]:
    return list(verify(receipt, here(native), today=TODAY))


def keys(found: list[SeamsError]) -> dict[str | None, tuple[str, str]]:
    """Key -> what the receipt has and what is there."""
    assert all(isinstance(fault, ReceiptDiffers) for fault in found), found
    return {fault.key: (fault.asked.partition(": ")[2], fault.found) for fault in found}


@pytest.mark.usefixtures("site")
def test_a_receipt_holds_the_environment_that_made_it(
    native: NativeSurface, tmp_path: Path
) -> None:
    receipt = write(tmp_path / "receipt.json", native)
    assert differences(receipt, native) == []
    body, model = read_receipt(receipt)
    assert model == asked()
    assert body["plan"]["seams"]["kda"]["owner"] == "@acme/layers"
    assert [layer["seam"] for layer in body["plan"]["layers"]] == [None, "kda", None, "kda"]
    assert body["plan"]["lowered_pattern"] == "MM|MM"


@pytest.mark.usefixtures("site")
def test_a_recipe_with_every_table_comes_back_from_a_receipt(
    native: NativeSurface, tmp_path: Path
) -> None:
    model = recipe(
        "M*K",
        depth=6,
        tokens={"K": "kda", "é": "gdn"},
        families={"attention": "mla"},
        layers=[{"positions": [5], "family": "dsa", "of": "attention"}],
        policy={"experiments": [], "pin": {"kda": "kda"}},
        override=[{"family": "kda", "seam": "kda", "reason": "té", "expires": TODAY}],
        seams={"kda": {"rate": 0.1, "day": TODAY, "names": ["a", "b"]}},
        parallelism={"tensor-parallel": 2},
        runtime={"packed-sequences": True},
        install={"kda": "acme-kda"},
        smoke={"steps": 3, "learning-rate": 1e-4, "megatron": {"hidden_size": 8}},
    )
    where = here(native)
    source, _ = importable_megatron()
    where = Environment(surface=native, discovery=where.discovery, source=source)
    receipt = tmp_path / "receipt.json"
    receipt.write_text(make_receipt(resolve(model, where, today=TODAY), model))
    _, back = read_receipt(receipt)
    assert back.override == model.override
    assert back.model == model.model
    assert back.smoke == model.smoke
    assert verify(receipt, where, today=TODAY) == ()


def test_the_same_plan_is_the_same_bytes_wherever_and_whenever_it_is_made(tmp_path: Path) -> None:
    install_kda(tmp_path / "site")
    model = tmp_path / "recipe.toml"
    model.write_text(
        toml(
            {
                "schema": 1,
                "model": {"name": "té", "pattern": "MK", "depth": 7},
                "dialect": {"tokens": {"K": "kda"}},
            }
        )
    )
    made = set()
    for number in range(3):
        cwd = tmp_path / f"cwd{number}"
        cwd.mkdir()
        receipt = cwd / "receipt.json"
        registry(
            "resolve",
            model,
            "--receipt",
            receipt,
            path=[tmp_path / "site"],
            cwd=cwd,
            code=0,
            PYTHONHASHSEED=str(number),
            TZ="Pacific/Kiritimati" if number else "UTC",
        )
        made.add(receipt.read_bytes())
    # Byte code that an import leaves behind is no part of a plugin's code.
    cache = tmp_path / "site" / "acme_parts" / "kda" / "__pycache__"
    cache.mkdir()
    (cache / "plugin.cpython-312.pyc").write_bytes(b"x")
    again = tmp_path / "again.json"
    registry("resolve", model, "--receipt", again, path=[tmp_path / "site"], cwd=tmp_path, code=0)
    made.add(again.read_bytes())
    assert len(made) == 1
    (text,) = made
    assert str(tmp_path).encode() not in text
    assert text.endswith(b"}\n")
    done = registry("verify", again, path=[tmp_path / "site"], cwd=tmp_path, code=0)
    assert "makes the same plan" in done.stdout


def test_another_version_of_the_plugin_differs(
    site: Path, native: NativeSurface, tmp_path: Path
) -> None:
    receipt = write(tmp_path / "receipt.json", native)
    shutil.rmtree(site)
    install_kda(site, version="1.1")
    assert keys(differences(receipt, native)) == {"seams.kda.version": ("1.0", "1.1")}


@pytest.mark.parametrize("file", ["kda/plugin.py", "kda/__init__.py", "__init__.py", "kda/new.py"])
def test_one_byte_of_the_plugins_code_differs(
    file: str, site: Path, native: NativeSurface, tmp_path: Path
) -> None:
    receipt = write(tmp_path / "receipt.json", native)
    code = site / "acme_parts" / file
    old = code.read_bytes() if code.exists() else b""
    code.write_bytes(old.replace(b"1", b"2") if old else b"#")
    assert set(keys(differences(receipt, native))) == {"seams.kda.code_digest"}


def test_a_file_that_is_renamed_differs(site: Path, native: NativeSurface, tmp_path: Path) -> None:
    receipt = write(tmp_path / "receipt.json", native)
    plugin = site / "acme_parts" / "kda" / "plugin.py"
    plugin.rename(plugin.with_name("plugin2.py"))
    assert set(keys(differences(receipt, native))) == {"seams.kda.code_digest"}


#: Manifest keys that inform, with other values than those of the tests' manifests.
INFORMATION: dict[str, tuple[str, str, object]] = {
    "owner": ("seam", "owner", "@acme/others"),
    "summary": ("seam", "summary", "In other words."),
    "review": ("seam", "review-by", datetime.date(2028, 1, 1)),
    "introduced": ("seam", "introduced", datetime.date(2026, 11, 2)),
    "tracking": ("upstream", "tracking", "NVIDIA/Megatron-LM#1"),
    "meaning": ("family", "summary", "Kimi delta attention."),
}


@pytest.mark.parametrize("key", INFORMATION)
def test_what_only_informs_voids_no_receipt(
    key: str, site: Path, native: NativeSurface, tmp_path: Path
) -> None:
    receipt = write(tmp_path / "receipt.json", native)
    table, name, value = INFORMATION[key]
    manifest = manifest_table("kda", "kda")
    manifest[table][name] = value
    (site / "acme_parts" / "kda" / "seam.toml").write_text(toml(manifest))
    assert differences(receipt, native) == []


@pytest.mark.parametrize(
    "change",
    [{"supports": ["pipeline-parallel"]}, {"requires": ">=0.18"}, {"status": "experiment"}],
)
def test_a_manifest_key_that_decides_differs(
    change: dict[str, object], site: Path, native: NativeSurface, tmp_path: Path
) -> None:
    model = asked(policy={"pin": {"kda": "kda"}})
    receipt = write(tmp_path / "receipt.json", native, model)
    (site / "acme_parts" / "kda" / "seam.toml").write_text(
        toml(manifest_table("kda", "kda", **change))  # type: ignore[arg-type]
    )
    found = set(keys(differences(receipt, native)))
    assert "seams.kda.manifest_digest" in found
    assert found <= {"seams.kda.manifest_digest", "seams.kda.status"}


def doctored(tmp_path: Path, *, minor: str = "19", extra: str = "# patched\n") -> NativeSurface:
    """The installed Megatron with another version or another text."""
    source, _ = importable_megatron()
    assert source is not None
    megatron = tmp_path / "doctored" / "megatron"
    shutil.copytree(Path(source.origin) / HYBRID, megatron / HYBRID)
    info = (Path(source.origin) / "core/package_info.py").read_text()
    (megatron / "core/package_info.py").write_text(info.replace("MINOR = 19", f"MINOR = {minor}"))
    block = megatron / HYBRID / "hybrid_block.py"
    block.write_text(block.read_text() + extra)
    return read_surface(open_megatron(megatron.parent))


@pytest.mark.usefixtures("site")
def test_another_megatron_differs_by_version_and_by_source(
    native: NativeSurface, tmp_path: Path
) -> None:
    receipt = write(tmp_path / "receipt.json", native)
    patched = doctored(tmp_path)
    assert set(keys(differences(receipt, patched))) == {"megatron_core.surface_digest"}
    shutil.rmtree(tmp_path / "doctored")
    newer = doctored(tmp_path, minor="20", extra="")
    assert set(keys(differences(receipt, newer))) == {"megatron_core.version"}


def test_every_difference_is_named_at_once(
    site: Path, native: NativeSurface, tmp_path: Path
) -> None:
    receipt = write(tmp_path / "receipt.json", native)
    shutil.rmtree(site)
    install_kda(site, version="2.0", owner="@acme/others", slots=["gdn_layer"])
    (site / "acme_parts" / "kda" / "plugin.py").write_text("VALUE = 2\n")
    found = keys(differences(receipt, doctored(tmp_path, minor="20")))
    assert set(found) == {
        "layers",
        "lowered_pattern",
        "megatron_core.version",
        "megatron_core.surface_digest",
        "seams.kda.version",
        "seams.kda.manifest_digest",
        "seams.kda.code_digest",
    }
    assert found["lowered_pattern"] == ("MM|MM", "MG|MG")


def test_a_seam_that_is_gone_is_named_beside_the_refusal(
    site: Path, native: NativeSurface, tmp_path: Path
) -> None:
    receipt = write(tmp_path / "receipt.json", native)
    shutil.rmtree(site)
    found = differences(receipt, doctored(tmp_path))
    assert [type(fault) for fault in found] == [ReceiptDiffers, ReceiptDiffers, NoProvider]
    assert found[0].key == "megatron_core.surface_digest"
    assert (found[1].key, found[1].found) == ("seams.kda", "nothing")
    assert found[2].positions == (2, 4)


def test_a_layer_that_native_takes_over_differs(tmp_path: Path, native: NativeSurface) -> None:
    model = recipe("M+")
    old = Environment(surface=native, discovery=discover())
    receipt = tmp_path / "receipt.json"
    receipt.write_text(make_receipt(resolve(model, old, today=TODAY), model))
    body = json.loads(receipt.read_text())
    body["plan"]["layers"][1].update(seam="latent", provider="seam", owner="@acme/latent")
    body["digest"] = receipt_digest(body)
    receipt.write_text(json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    (fault,) = verify(receipt, old, today=TODAY)
    assert (fault.key, fault.positions) == ("layers", (2,))
    assert "seam latent (@acme/latent)" in fault.asked
    assert "native" in fault.found


@pytest.mark.usefixtures("site")
def test_an_override_that_has_expired_since_is_refused(
    native: NativeSurface, tmp_path: Path
) -> None:
    entry = {"family": "kda", "seam": "kda", "reason": "for now", "expires": TODAY}
    receipt = write(tmp_path / "receipt.json", native, asked(override=[entry]))
    assert differences(receipt, native) == []
    later = TODAY + datetime.timedelta(days=1)
    (fault,) = verify(receipt, here(native), today=later)
    assert type(fault).__name__ == "OverrideInvalid"


# --- receipts that cannot be read -------------------------------------------------------------


@pytest.mark.usefixtures("site")
def test_any_edited_byte_of_a_receipt_is_refused(native: NativeSurface, tmp_path: Path) -> None:
    receipt = write(tmp_path / "receipt.json", native)
    data = receipt.read_bytes()
    edited = tmp_path / "edited.json"
    # Every byte of the first and last lines, and a sample of the rest: white space, keys, digits.
    chosen = {*range(60), *range(len(data) - 20, len(data))}
    chosen |= set(random.Random(7).sample(range(len(data)), 300))  # noqa: S311 - no secret
    for at in sorted(chosen):
        for new in {b" ", b"x", b"\n", bytes([data[at] ^ 1])} - {data[at : at + 1]}:
            edited.write_bytes(data[:at] + new + data[at + 1 :])
            with pytest.raises(ReceiptUnreadable):
                read_receipt(edited)
    for text in (data + b"\n", data[:-1], data.replace(b"\n", b"\r\n"), b" " + data):
        edited.write_bytes(text)
        with pytest.raises(ReceiptUnreadable):
            read_receipt(edited)


def sealed(body: Table) -> bytes:
    """A body with the digest that it would have, as an attacker or a later version writes it."""
    body["digest"] = receipt_digest(body)
    return (json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


KIND = "megatron-seams receipt"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"kind": "another"}',
        sealed({"kind": KIND, "schema": 3}),
        sealed({"kind": KIND, "schema": True}),
        sealed({"kind": KIND, "schema": 2}),
        sealed({"kind": KIND, "schema": 1}),
        sealed({"kind": KIND, "schema": 2, "request": {}, "plan": {}, "accepted": [1]}),
        sealed({"kind": KIND, "schema": 1, "request": [], "plan": {}}),
        sealed({"kind": KIND, "schema": 1, "request": {"override": [{}]}, "plan": {}}),
        sealed({"kind": KIND, "schema": 1, "request": {"schema": 1}, "plan": {}}),
    ],
)
def test_what_is_no_receipt_is_said_to_be_none(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    path.write_bytes(data)
    with pytest.raises(ReceiptUnreadable) as caught:
        read_receipt(path)
    assert caught.value.file == str(path)


def test_a_receipt_that_is_not_there_is_unreadable_on_the_command_line(tmp_path: Path) -> None:
    done = registry("verify", tmp_path / "none.json", cwd=tmp_path, code=2)
    assert "SEAM-V01" in done.stderr


def test_verify_names_every_difference_on_the_command_line(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install_kda(site)
    model = tmp_path / "recipe.toml"
    model.write_text(
        toml(
            {
                "schema": 1,
                "model": {"name": "k", "pattern": "MK"},
                "dialect": {"tokens": {"K": "kda"}},
            }
        )
    )
    receipt = tmp_path / "receipt.json"
    registry("resolve", model, "--receipt", receipt, path=[site], cwd=tmp_path, code=0)
    shutil.rmtree(site)
    install_kda(site, version="1.1", supports=["pipeline-parallel"])
    done = registry("verify", receipt, path=[site], cwd=tmp_path, code=2)
    for key in ("seams.kda.version: 1.0", "found: 1.1", "seams.kda.manifest_digest"):
        assert key in done.stderr
    assert done.stderr.count("SEAM-V02") == 2
    shutil.rmtree(site)
    gone = registry("verify", receipt, cwd=tmp_path, code=2)
    assert "seams.kda" in gone.stderr
    assert "SEAM-R01" in gone.stderr


def test_a_refused_plan_leaves_no_receipt(tmp_path: Path) -> None:
    receipt = tmp_path / "receipt.json"
    registry("resolve", "MQ", "--receipt", receipt, cwd=tmp_path, code=2)
    assert not receipt.exists()


@pytest.mark.usefixtures("site")
def test_a_receipt_of_schema_2_lacks_the_placement_alone_and_verifies(
    native: NativeSurface, tmp_path: Path
) -> None:
    receipt = write(tmp_path / "receipt.json", native)
    body = json.loads(receipt.read_text())
    assert body.pop("schema") == 3
    del body["plan"]["placement"], body["digest"]
    old = {**body, "schema": 2}
    receipt.write_text(json_text({**old, "digest": receipt_digest(old)}))
    assert differences(receipt, native) == []


@pytest.mark.usefixtures("site")
def test_a_native_feature_that_goes_is_a_difference(native: NativeSurface, tmp_path: Path) -> None:
    model = recipe("MK|MK/M", tokens={"K": "kda"})
    receipt = write(tmp_path / "receipt.json", native, model)
    body = json.loads(receipt.read_text())
    rows = body["plan"]["placement"]
    rows.remove(next(row for row in rows if row["name"] == "mtp"))
    del body["digest"]
    receipt.write_text(json_text({**body, "digest": receipt_digest(body)}))
    found = keys(differences(receipt, native))
    assert set(found) == {"native feature mtp"}
    was, now = found["native feature mtp"]
    assert was == "nothing"
    assert now == "at mtp, layers [], [1] of each depth"


@pytest.mark.usefixtures("site")
def test_a_receipt_of_the_largest_depth_can_be_read_again(native: NativeSurface) -> None:
    """By a receipt of a part of its layers, as the whole takes seconds."""
    parts = 100
    where = Environment(surface=native, discovery=discover())
    model = recipe(
        "M*KE", depth=MAX_DEPTH // parts, tokens={"K": "kda"}, families={"attention": "mla"}
    )
    text = make_receipt(resolve(model, where, today=TODAY), model)
    assert parts * len(text.encode()) < MAX_BYTES
