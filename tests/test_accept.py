"""`registry accept`: a changed plan on the record, and nothing without one."""

import datetime
import functools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest
from click.testing import CliRunner

import megatron_releases
from megatron_seams.base.canonical_json import json_text
from megatron_seams.base.files import locked
from megatron_seams.cli import accept as accept_command
from megatron_seams.cli import cli
from megatron_seams.errors import AcceptanceInvalid, ExitCode, ReceiptUnreadable, Refusal
from megatron_seams.planning.resolver import resolve
from megatron_seams.records import accept as accept_module
from megatron_seams.records.accept import Acceptance, accept
from megatron_seams.records.receipt import body_digest, make_receipt, read_receipt, receipt_digest
from megatron_seams.records.verify import verify
from seam_support import (
    environment,
    install_plugin,
    make_seam,
    manifest_table,
    recipe,
    registry,
    surface,
)

SEAM = make_seam("kda", "kda", slots=["mamba_layer"])
OTHER = make_seam("kda", "kda", slots=["mamba_layer"], version="2.0")
ASKED = {"pattern": "K*", "tokens": {"K": "kda"}}


def acceptance(reason: str = "The new version was reviewed.") -> Acceptance:
    return Acceptance(by="the reviewer", reason=reason, when=datetime.date(2026, 12, 1))


@pytest.fixture
def receipt(tmp_path: Path) -> Path:
    file = tmp_path / "receipt.json"
    asked = recipe(**ASKED)
    file.write_text(make_receipt(resolve(asked, environment(SEAM)), asked), encoding="utf-8")
    return file


def body(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def test_an_accepted_change_verifies_and_says_who_why_and_what(receipt: Path) -> None:
    before = body(receipt)
    assert verify(receipt, environment(OTHER))
    found = accept(receipt, environment(OTHER), acceptance())
    assert [difference.key for difference in found] == ["seams.kda.version"]
    assert verify(receipt, environment(OTHER)) == ()
    assert verify(receipt, environment(SEAM))
    assert body(receipt)["accepted"] == [
        {
            "by": "the reviewer",
            "reason": "The new version was reviewed.",
            "date": "2026-12-01",
            "previous_digest": before["digest"],
            "previous_body": body_digest(before),
            "differences": [
                {"what": "seams.kda.version", "was": "1.0", "now": "2.0", "positions": []}
            ],
        }
    ]
    assert body(receipt)["request"] == before["request"]


def test_the_record_keeps_every_earlier_acceptance(receipt: Path) -> None:
    accept(receipt, environment(OTHER), acceptance("First."))
    middle = body(receipt)["digest"]
    accept(receipt, environment(SEAM), acceptance("Back again."))
    history = body(receipt)["accepted"]
    assert [entry["reason"] for entry in history] == ["First.", "Back again."]
    assert history[1]["previous_digest"] == middle


def test_a_receipt_that_fits_is_not_touched(receipt: Path) -> None:
    before = receipt.read_bytes()
    assert accept(receipt, environment(SEAM), acceptance()) == ()
    assert receipt.read_bytes() == before


def test_a_plan_that_cannot_be_made_cannot_be_accepted(receipt: Path) -> None:
    before = receipt.read_bytes()
    with pytest.raises(Refusal, match="a provider for family 'kda'"):
        accept(receipt, environment(), acceptance())
    assert receipt.read_bytes() == before


def test_an_edited_history_breaks_the_receipt(receipt: Path) -> None:
    accept(receipt, environment(OTHER), acceptance())
    receipt.write_text(receipt.read_text().replace("the reviewer", "somebody else"))
    with pytest.raises(ReceiptUnreadable, match="edited"):
        read_receipt(receipt)


def test_a_receipt_that_cannot_be_replaced_stays_whole(
    receipt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = receipt.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(AcceptanceInvalid, match="nothing was changed"):
        accept(receipt, environment(OTHER), acceptance())
    assert receipt.read_bytes() == before
    assert [file.name for file in receipt.parent.iterdir()] == [receipt.name]


def test_the_same_acceptance_gives_the_same_bytes(receipt: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    copy.write_bytes(receipt.read_bytes())
    for file in (receipt, copy):
        accept(file, environment(OTHER), acceptance())
    assert receipt.read_bytes() == copy.read_bytes()


def test_an_accepted_receipt_is_of_the_published_schema(receipt: Path, repository: Path) -> None:
    schema = json.loads((repository / "docs" / "schema" / "receipt.schema.json").read_text())
    accept(receipt, environment(OTHER), acceptance())
    jsonschema.validate(body(receipt), schema)


def test_a_reason_is_required_and_says_something(receipt: Path) -> None:
    before = receipt.read_bytes()
    assert registry("accept", str(receipt)).returncode == 2
    for nothing in ("  ", "\u200b\u2060"):
        done = registry("accept", str(receipt), "--reason", nothing)
        assert done.returncode == 2
        assert "SEAM-V03" in done.stderr
    assert receipt.read_bytes() == before


def test_without_a_name_the_next_step_is_to_give_one(
    receipt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")  # as in a container, until Python 3.13

    monkeypatch.setattr(accept_command.shutil, "which", lambda _: None)
    monkeypatch.setattr(accept_command.getpass, "getuser", nobody)
    done = CliRunner().invoke(cli, ["accept", str(receipt), "--reason", "Reviewed."])
    assert done.exit_code == ExitCode.REFUSED, done.output
    assert "SEAM-V03" in done.output
    assert "--by WHO" in done.output


@pytest.mark.published
def test_a_receipt_of_an_older_release_is_refused_until_it_is_accepted(tmp_path: Path) -> None:
    older, newer = (str(megatron_releases.wheel(release)) for release in ("0.18", "0.19"))
    file = str(tmp_path / "receipt.json")
    made = registry("resolve", "M*E-", "--receipt", file, "--megatron", older)
    assert made.returncode == 0, made.stderr
    refused = registry("verify", file, "--megatron", newer)
    assert refused.returncode == 2
    assert "registry accept RECEIPT --reason TEXT" in refused.stderr
    reason = ("--reason", "Upgraded after the smoke run.")
    taken = registry("accept", file, *reason, "--by", "the upgrader", "--megatron", newer)
    assert taken.returncode == 0, taken.stderr
    assert "2 differences accepted by the upgrader" in taken.stdout
    assert registry("verify", file, "--megatron", newer).returncode == 0
    assert registry("verify", file, "--megatron", older).returncode == 2
    again = registry("accept", file, *reason, "--megatron", newer)
    assert "nothing to accept" in again.stdout


def test_what_is_accepted_names_its_layers(tmp_path: Path) -> None:
    file, model = tmp_path / "receipt.json", tmp_path / "model.toml"
    text = 'schema = 1\n[model]\nname = "m"\npattern = "MEMEME"\n'
    model.write_text(text)
    registry("resolve", model, "--receipt", file, code=0)
    layers = '[[layers]]\nof = "moe"\nranks = [0, 2]\nfamily = "mlp"\n'
    model.write_text(text + layers)
    asked = ("accept", file, "--recipe", model, "--reason", "Two dense.", "--by", "us")
    done = registry(*asked, code=0)
    assert "-> E mlp: native, mlp_layer -, stage 0 on rank 0 (layers 2, 6)\n" in done.stdout


# --- the chain --------------------------------------------------------------------------------


def resealed(file: Path, changed: dict[str, Any]) -> None:
    """A receipt with a digest of its own, as somebody writes it who knows how they are made."""
    changed["digest"] = receipt_digest(changed)
    file.write_text(json_text(changed), encoding="utf-8")


def accepted_thrice(file: Path) -> dict[str, Any]:
    accept(file, environment(OTHER), acceptance("First."))
    accept(file, environment(SEAM), acceptance("Second."))
    accept(file, environment(OTHER), acceptance("Third."))
    return body(file)


def test_every_link_of_a_history_holds(receipt: Path) -> None:
    history = accepted_thrice(receipt)["accepted"]
    assert len({entry["previous_digest"] for entry in history}) == 3
    assert verify(receipt, environment(OTHER)) == ()


@pytest.mark.parametrize(
    "edit",
    [
        lambda history: history.pop(0),
        lambda history: history.pop(1),
        lambda history: history.reverse(),
        lambda history: history.insert(1, dict(history[0])),
        lambda history: history[0].update(reason="Another."),
        lambda history: history[1].update(by="somebody else"),
        lambda history: history[0]["differences"][0].update(now="3.0"),
        lambda history: history[2].update(previous_digest="0" * 64),
        lambda history: history[2].update(previous_body="0" * 64),
        lambda history: history[1].pop("previous_body"),
    ],
)
def test_a_history_that_was_edited_and_sealed_again_is_refused(edit: Any, receipt: Path) -> None:
    changed = accepted_thrice(receipt)
    edit(changed["accepted"])
    resealed(receipt, changed)
    with pytest.raises(ReceiptUnreadable, match="does not have the digest of the receipt"):
        verify(receipt, environment(OTHER))


# --- several at once, and links ---------------------------------------------------------------


def test_of_several_acceptances_at_once_none_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "receipts"
    folder.mkdir()
    file, model = folder / "receipt.json", tmp_path / "model.toml"
    model.write_text(
        'schema = 1\n[model]\nname = "m"\npattern = "MK"\n[dialect.tokens]\nK = "kda"\n'
    )
    sites = []
    for number in range(5):
        site = tmp_path / f"site{number}"
        table = manifest_table("kda", "kda")
        install_plugin(site, "acme-kda", {"acme_kda": table}, version=f"{number}.0")
        sites.append(site)
    registry("resolve", model, "--receipt", file, path=[sites[0]], cwd=tmp_path, code=0)
    with ThreadPoolExecutor() as pool:
        done = list(
            pool.map(
                lambda site: registry(
                    *("accept", file, "--reason", f"From {site.name}.", "--by", "us"),
                    path=[site],
                    cwd=tmp_path,
                ),
                sites[1:],
            )
        )
    assert [it.returncode for it in done] == [0] * 4, [it.stderr for it in done]
    found, _ = read_receipt(file)
    reasons = {entry["reason"] for entry in found["accepted"]}
    assert reasons == {f"From {site.name}." for site in sites[1:]}
    assert [it.name for it in folder.iterdir()] == [file.name]


def test_an_acceptance_waits_for_the_one_before_it_and_gives_up_in_words(
    receipt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = receipt.read_bytes()
    monkeypatch.setattr(accept_module, "locked", functools.partial(locked, seconds=0.1))
    with locked(receipt), pytest.raises(AcceptanceInvalid, match="another process has kept"):
        accept(receipt, environment(OTHER), acceptance())
    assert receipt.read_bytes() == before
    assert accept(receipt, environment(OTHER), acceptance())


def test_a_link_to_a_receipt_is_followed_and_stays(receipt: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link.json"
    link.parent.mkdir()
    link.symlink_to(receipt)
    assert accept(link, environment(OTHER), acceptance())
    assert link.is_symlink()
    assert verify(receipt, environment(OTHER)) == ()
    assert [it.name for it in link.parent.iterdir()] == [link.name]


# --- recipes and older schemas ----------------------------------------------------------------


def test_a_recipe_that_changed_is_a_difference_until_it_is_accepted(receipt: Path) -> None:
    now = recipe(**ASKED, seams={"kda": {"heads": 4}}, smoke={"steps": 7})
    found = verify(receipt, environment(SEAM), recipe=now)
    assert [fault.key for fault in found] == ["recipe.seams.kda"]
    assert verify(receipt, environment(SEAM)) == ()
    assert accept(receipt, environment(SEAM), acceptance(), recipe=now)
    assert verify(receipt, environment(SEAM), recipe=now) == ()
    assert read_receipt(receipt)[1].seams == {"kda": {"heads": 4}}


@pytest.mark.parametrize("name", ["why", "owner"])
def test_an_option_of_any_name_is_compared(name: str, receipt: Path) -> None:
    one, two = (recipe(**ASKED, seams={"kda": {name: value}}) for value in ("a", "b"))
    accept(receipt, environment(SEAM), acceptance(), recipe=one)
    (fault,) = verify(receipt, environment(SEAM), recipe=two)
    assert fault.key == f"recipe.seams.kda.{name}"


def test_true_and_one_and_one_point_nought_are_three_values(receipt: Path) -> None:
    one, two, three = (recipe(**ASKED, seams={"kda": {"x": value}}) for value in (True, 1, 1.0))
    accept(receipt, environment(SEAM), acceptance(), recipe=one)
    assert verify(receipt, environment(SEAM), recipe=one) == ()
    assert verify(receipt, environment(SEAM), recipe=two)
    assert verify(receipt, environment(SEAM), recipe=three)


def test_a_receipt_of_schema_1_is_read_and_accepted_into_this_one(tmp_path: Path) -> None:
    file = tmp_path / "receipt.json"
    file.write_bytes((Path(__file__).parent / "data" / "receipt_schema_1.json").read_bytes())
    old, _ = read_receipt(file)
    where = environment()
    first = verify(file, where)[0]
    assert (first.key, first.found) == ("schema", "3")
    assert "accept it with a reason" in first.next
    accept(file, where, acceptance())
    assert verify(file, where) == ()
    new, kept = read_receipt(file)
    assert new["schema"] == 3
    assert new["accepted"][0]["previous_digest"] == old["digest"]
    assert [layer["stage"] for layer in new["plan"]["layers"]] == [0, 0, 0, 1, 1]
    assert kept.model.pattern == "M*-|E-/*-"
    accept(file, environment(native=surface("0.18.2")), acceptance())
    read_receipt(file)


def test_differences_of_schema_1_are_those_that_can_be_told(tmp_path: Path) -> None:
    file = tmp_path / "receipt.json"
    file.write_bytes((Path(__file__).parent / "data" / "receipt_schema_1.json").read_bytes())
    old = body(file)["plan"]["megatron_core"]
    native = attrs.evolve(surface(old["version"]), digest=old["surface_digest"])
    assert [fault.key for fault in verify(file, environment(native=native))] == ["schema"]
