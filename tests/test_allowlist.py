"""Allowlists: an installed seam that a list leaves out is no candidate, and the refusal says so."""

import json
from pathlib import Path

import attrs
import jsonschema
import pytest

from megatron_seams.errors import NotAllowed, OverrideInvalid
from megatron_seams.governance.audit import audit
from megatron_seams.planning.environment import Environment
from megatron_seams.records.receipt import make_receipt, read_receipt
from megatron_seams.seams.allowlist import VARIABLE, Allowlist, operators_allowlist
from megatron_seams.seams.seam import Seam
from seam_support import (
    TODAY,
    environment,
    install_plugin,
    make_seam,
    manifest_table,
    only,
    plan,
    reasons,
    recipe,
    registry,
    run_python,
)

KDA = {"tokens": {"K": "kda"}}


def allowing(names: list[str] | None, *seams: Seam) -> Environment:
    allowlist = Allowlist().narrowed(VARIABLE, names)
    return attrs.evolve(environment(*seams), allowlist=allowlist)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, None),
        ("", set()),
        (" , ", set()),
        ("kda", {"kda"}),
        ("kda,gla", {"kda", "gla"}),
        (" kda\n\tgla ,", {"kda", "gla"}),
    ],
)
def test_operators_name_seams_apart_by_spaces_or_commas(
    value: str | None, names: set[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    expected = {} if names is None else {VARIABLE: frozenset(names)}
    assert operators_allowlist().lists == expected


def test_every_list_that_is_set_must_name_a_seam() -> None:
    both = Allowlist().narrowed("a", ["kda", "gla"]).narrowed("b", ["kda"]).narrowed("c", None)
    assert both.against("kda") is None
    assert both.against("gla") == "b allows only kda"
    assert both.against("x") == "a allows only gla, kda"
    assert Allowlist().against("x") is None
    assert Allowlist().narrowed("a", []).against("x") == "a allows only native Megatron"


@pytest.mark.parametrize("by", ["operators", "recipe"])
def test_a_seam_that_is_not_allowed_is_no_candidate_and_the_refusal_says_so(by: str) -> None:
    names = ["other"]
    where = allowing(names if by == "operators" else None, make_seam())
    asked = recipe("MK", **KDA, policy={} if by == "operators" else {"allow": names})
    fault = only(reasons(asked, where), NotAllowed)
    assert fault.positions == (2,)
    assert "seam 'kda' of acme-kda 1.0 (owner @acme/layers) is not allowed" in fault.found
    assert ("[policy] allow" if by == "recipe" else VARIABLE) in fault.found
    allowed = recipe("MK", **KDA, policy={} if by == "operators" else {"allow": ["kda"]})
    assert plan(allowed, allowing(["kda"], make_seam())).seams[0].name == "kda"


def test_of_two_seams_the_allowed_one_is_taken() -> None:
    two = (make_seam("kda"), make_seam("fast", "kda"))
    chosen = plan(recipe("K", **KDA), allowing(["fast"], *two)).seams
    assert [seam.name for seam in chosen] == ["fast"]


def test_native_needs_no_permission_and_no_seam_contests_it() -> None:
    """A seam that accepts nothing upstream makes a native family a refusal, if it may be used."""
    seam = make_seam("mine", "moe")
    assert reasons(recipe("ME"), allowing(None, seam))
    assert plan(recipe("ME"), allowing([], seam)).seams == ()


def test_a_pin_or_an_override_allows_nothing() -> None:
    two = (make_seam("kda"), make_seam("fast", "kda"))
    pinned = recipe("K", **KDA, policy={"pin": {"kda": "kda"}})
    assert "not allowed" in only(reasons(pinned, allowing(["fast"], *two)), NotAllowed).found
    entry = {"family": "moe", "seam": "mine", "reason": "trial", "expires": TODAY}
    fault = only(
        reasons(recipe("E", override=[entry]), allowing([], make_seam("mine", "moe"))),
        OverrideInvalid,
    )
    assert "not allowed" in fault.found


def test_the_audit_and_the_command_line_say_so(tmp_path: Path) -> None:
    seam = make_seam()
    (row,) = (row for row in audit(allowing([], seam)).families if row.family.name == "kda")
    assert (row.state, [one.state for one in row.seams]) == ("refused", ["not allowed"])

    site = tmp_path / "site"
    install_plugin(site, "acme-kda", {"acme_kda": manifest_table("kda")})
    listed = registry("list", cwd=tmp_path, path=[site], **{VARIABLE: "gla"}).stdout
    assert f"not allowed: {VARIABLE} allows only gla" in " ".join(listed.split())  # it is wrapped
    done = registry("explain", "kda", cwd=tmp_path, path=[site], **{VARIABLE: "gla"})
    assert "SEAM-R13" in done.stdout + done.stderr


def test_a_receipt_keeps_the_recipe_s_list(repository: Path, tmp_path: Path) -> None:
    schema = json.loads((repository / "docs" / "schema" / "receipt.schema.json").read_text())
    for names in (None, [], ["kda", "gla"]):
        policy = {} if names is None else {"allow": names}
        asked = recipe("MK" if names else "M", **KDA, policy=policy)
        file = tmp_path / "receipt.json"
        file.write_text(make_receipt(plan(asked, environment(make_seam())), asked))
        jsonschema.validate(json.loads(file.read_text()), schema)
        _, read = read_receipt(file)
        assert read == asked


def test_a_run_is_held_to_the_list_of_the_machine_that_it_runs_on(tmp_path: Path) -> None:
    """The variable is read where the plan is made, on every rank, and not only by the command."""
    site = tmp_path / "site"
    install_plugin(site, "acme-kda", {"acme_kda": manifest_table("kda")})
    program = (
        "from megatron_seams.planning.environment import read_environment as r; "
        "print(r().allowlist.against('kda'))"
    )
    done = run_python("-c", program, cwd=tmp_path, path=[site], code=0, **{VARIABLE: "gla"})
    assert done.stdout == f"{VARIABLE} allows only gla\n"
