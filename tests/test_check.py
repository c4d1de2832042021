"""`registry check`: superseded seams, ranges and claims, against a workspace's policy."""

import json
from pathlib import Path

import attrs
import jsonschema
import pytest

from megatron_seams.errors import (
    ClaimDiffers,
    ExitCode,
    ManifestInvalid,
    MegatronMissing,
    Refusal,
    SeamsError,
    Superseded,
    Unwritten,
    WorkspaceInvalid,
    WrongMegatron,
)
from megatron_seams.governance.gate import Gate, check
from megatron_seams.governance.workspace import Workspace, WorkspacePolicy, read_workspace
from megatron_seams.planning.environment import Environment
from megatron_seams.seams.manifest import parse_manifest
from megatron_seams.seams.seam import Seam
from megatron_seams.upstream.locate import megatron_missing
from megatron_seams.upstream.surface import NativeSurface
from seam_support import environment, make_seam, manifest_table, registry, surface, toml


def latent(*, requires: str = ">=0.17,<0.20", since: str | None = None) -> Seam:
    accepts = {"symbol-name": "MLA"} | ({"native-since": since} if since else {})
    return make_seam(
        "latent",
        "mla",
        fallback="native",
        accepts=accepts,
        slots=["attention_layer"],
        requires=requires,
    )


def gate(policy: str | None, *seams: Seam, native: NativeSurface | None = None) -> Gate:
    workspace = Workspace(policy=WorkspacePolicy(megatron_core=policy))
    return check(environment(*seams, native=native), workspace)


def only(found: Gate) -> tuple[str, type[SeamsError]]:
    (verdict,) = found.verdicts
    return verdict.severity, type(verdict.finding)


@pytest.mark.parametrize("since", ["0.19", None])
@pytest.mark.parametrize(
    ("policy", "severity"),
    [
        (">=0.17,<0.20", "warning"),
        (">=0.18.1", "warning"),
        ("==0.18.2", "warning"),
        (">=0.19,<0.20", "error"),
        (">=0.20", "error"),
        ("<0.17", "error"),  # releases that the seam does not support either
        (None, "error"),
    ],
)
def test_a_superseded_seam_is_a_warning_while_a_release_in_use_needs_it(
    policy: str | None, severity: str, since: str | None
) -> None:
    found = gate(policy, latent(since=since))
    assert only(found) == (severity, Superseded)
    assert found.exit_code == (ExitCode.FINDINGS if severity == "error" else ExitCode.OK)


def test_superseded_outranks_a_wrong_range() -> None:
    assert only(gate(">=0.17", latent(requires=">=0.17,<0.19"))) == ("warning", Superseded)


def test_a_wrong_range_of_a_seam_that_is_needed_is_an_error() -> None:
    seam = make_seam(requires="<0.19")
    assert only(gate(">=0.17", seam)) == ("error", WrongMegatron)


def test_a_claim_is_held_to_the_megatron_in_hand() -> None:
    early = gate(">=0.17", latent(since="0.20"))
    assert {type(one.finding) for one in early.verdicts} == {Superseded, ClaimDiffers}
    assert "builds it all the same" in str(early.verdicts[0].finding)
    without = surface(without=("MLA",))
    late = gate(">=0.17", latent(since="0.19"), native=without)
    assert only(late) == ("error", ClaimDiffers)
    assert "does not build it" in str(late.verdicts[0].finding)
    assert gate(">=0.17", latent(since="0.20"), native=without).verdicts == ()


def test_without_a_megatron_nothing_can_be_judged() -> None:
    made = environment(latent(), native=NativeSurface(), faults=[megatron_missing()])
    found = check(made, Workspace())
    assert only(found) == ("error", MegatronMissing)
    assert found.exit_code is ExitCode.ENVIRONMENT


@pytest.mark.parametrize("since", ["soon", 19, "native"])
def test_a_claim_is_a_release(since: object) -> None:
    table = manifest_table("x", "mla", fallback="native", accepts={"symbol-name": "MLA"})
    table["upstream"]["native-since"] = since
    manifest, faults = parse_manifest(toml(table).encode(), file="seam.toml")
    assert manifest is None
    assert [(type(fault), fault.key) for fault in faults] == [
        (ManifestInvalid, "upstream.native-since")
    ]


@pytest.mark.parametrize("requires", ["", " ", " , "])
def test_an_empty_range_says_nothing_and_is_refused(requires: str) -> None:
    table = manifest_table(requires=requires)
    manifest, faults = parse_manifest(toml(table).encode(), file="seam.toml")
    assert manifest is None
    assert [(type(fault), fault.key) for fault in faults] == [
        (ManifestInvalid, "requires.megatron-core")
    ]


def test_a_text_that_is_still_to_be_written_is_a_warning() -> None:
    table = manifest_table("kda", meaning="To be written: what these layers are")
    table["seam"]["summary"] = " to be written"
    table["options"] = {"heads": {"type": "int", "default": 1, "summary": "To be written."}}
    manifest, faults = parse_manifest(toml(table).encode(), file="seam.toml")
    assert manifest is not None, faults
    found = check(environment(attrs.evolve(make_seam(), manifest=manifest)), Workspace())
    assert {(one.severity, type(one.finding), one.finding.key) for one in found.verdicts} == {
        ("warning", Unwritten, key)
        for key in ("seam.summary", "family.summary", "options.heads.summary")
    }


def test_a_seam_that_accepts_nothing_claims_nothing() -> None:
    table = manifest_table("x", "mla", fallback="refuse", accepts={"native-since": "0.19"})
    manifest, faults = parse_manifest(toml(table).encode(), file="seam.toml")
    assert manifest is None
    assert "nothing is named" in faults[0].found


# --- the workspace ----------------------------------------------------------------------------


def test_the_nearest_table_is_the_workspaces(tmp_path: Path) -> None:
    inner = tmp_path / "plugins" / "kda"
    inner.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(
        '[tool.megatron-seams.policy]\nmegatron-core = ">=0.18"\n'
    )
    (inner / "pyproject.toml").write_text('[project]\nname = "kda"\n')
    assert read_workspace(inner).policy.megatron_core == ">=0.18"
    outside = read_workspace(tmp_path.parent)
    assert (outside.policy, outside.file) == (WorkspacePolicy(), None)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[tool.megatron-seams.policy]\nmegatron-core = 19\n", "policy.megatron-core"),
        ('[tool.megatron-seams.policy]\nmegatron-core = "new"\n', "policy.megatron-core"),
        ('[tool.megatron-seams.policy]\nmegatron-core = ""\n', "policy.megatron-core"),
        ('[tool.megatron-seams.policy]\nexternal = "kda"\n', "policy.external"),
        ("[tool.megatron-seams.policy]\nmegatron = 1\n", "policy.megatron"),
        ("[tool.megatron-seams]\npolicies = 1\n", "policies"),
        ("[tool.megatron-seams\n", None),
    ],
)
def test_a_wrong_table_is_named_with_file_and_key(
    text: str, key: str | None, tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(Refusal) as refused:
        read_workspace(tmp_path)
    fault = refused.value.reasons[0]
    assert isinstance(fault, WorkspaceInvalid)
    assert fault.file == str(tmp_path / "pyproject.toml")
    assert fault.key == (None if key is None else f"tool.megatron-seams.{key}")


# --- the command ------------------------------------------------------------------------------


def test_the_command_prints_what_is_published(repository: Path, tmp_path: Path) -> None:
    schema = json.loads((repository / "docs" / "schema" / "check.schema.json").read_text())
    for megatron in ([], ["--megatron", str(tmp_path)]):
        done = registry("check", "--format", "json", *megatron, cwd=repository)
        if megatron:
            assert done.returncode == 3
            continue
        assert done.returncode == 0, done.stdout
        found = json.loads(done.stdout)
        jsonschema.validate(found, schema)
        assert found["passed"]
        assert found["looked_at"]["recipes"] == len([*(repository / "recipes").glob("*.toml")])
    text = registry("check", cwd=repository)
    assert "check: 0 errors" in text.stdout


def test_an_environment_without_findings_passes() -> None:
    made: Environment = environment(make_seam())
    assert check(made, Workspace()).verdicts == ()
