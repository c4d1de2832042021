"""`--receipt` overwrites only what it would write: no other plan, no history, no other file."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_seams.errors import ReceiptKept
from megatron_seams.records.accept import Acceptance, accept
from megatron_seams.records.keep import keep_receipt
from megatron_seams.records.receipt import read_receipt
from seam_support import TODAY, environment, make_seam, plan, recipe, registry

SEAM = make_seam("kda", "kda", slots=["mamba_layer"])
OTHER = make_seam("kda", "kda", slots=["mamba_layer"], version="2.0")
ASKED = recipe("K*", tokens={"K": "kda"})


def keep(file: Path, seam: Any = SEAM, asked: Any = ASKED, *, replace: bool = False) -> None:
    keep_receipt(file, plan(asked, environment(seam)), asked, replace=replace)


def kept(file: Path, seam: Any = SEAM, asked: Any = ASKED) -> ReceiptKept:
    """The refusal, which leaves the file and its folder as they were; and that it can be forced."""
    before = file.read_bytes()
    with pytest.raises(ReceiptKept) as refused:
        keep(file, seam, asked)
    assert file.read_bytes() == before
    assert [it.name for it in file.parent.iterdir()] == [file.name]
    keep(file, seam, asked, replace=True)
    assert read_receipt(file)[1] == asked
    return refused.value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "receipts").mkdir()
    return tmp_path / "receipts" / "receipt.json"


def test_a_new_file_an_empty_one_and_the_same_plan_are_written(file: Path) -> None:
    keep(file)
    text = file.read_text()
    keep(file)
    assert file.read_text() == text
    file.write_text("")
    keep(file)
    assert file.read_text() == text


def test_what_changes_no_plan_is_written(file: Path) -> None:
    keep(file)
    keep(file, asked=recipe("K*", tokens={"K": "kda"}, smoke={"steps": 3}))
    assert read_receipt(file)[1].smoke.steps == 3


def test_another_plan_is_kept(file: Path) -> None:
    keep(file)
    assert "seams.kda.version: 1.0 -> 2.0" in kept(file, OTHER).found


@pytest.mark.parametrize(
    "asked",
    [
        recipe("K*K", tokens={"K": "kda"}),
        recipe("K*", tokens={"K": "kda"}, seams={"kda": {"heads": 3}}),
    ],
)
def test_another_recipe_is_kept(asked: Any, file: Path) -> None:
    keep(file)
    assert "another plan" in kept(file, asked=asked).found


def test_acceptances_are_kept_even_of_the_same_plan(file: Path) -> None:
    keep(file)
    accept(file, environment(OTHER), Acceptance(by="the reviewer", reason="Reviewed.", when=TODAY))
    assert "1 acceptance" in kept(file, OTHER).found


@pytest.mark.parametrize("text", ["notes\n", "{}", "[1]", '{"kind": "megatron-seams receipt"}'])
def test_a_file_that_is_no_receipt_is_kept(text: str, file: Path) -> None:
    file.write_text(text)
    fault = kept(file)
    assert "no receipt that can be read" in fault.found
    assert "accept" not in fault.next


def test_a_link_is_followed_and_stays(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(file)
    keep(link)
    with pytest.raises(ReceiptKept):
        keep(link, OTHER)
    keep(link, OTHER, replace=True)
    assert link.is_symlink()
    assert read_receipt(file)[0]["plan"]["seams"]["kda"]["version"] == "2.0"


def test_the_command_line_refuses_says_how_to_go_on_and_that_works(tmp_path: Path) -> None:
    file = tmp_path / "receipt.json"
    one, two = (tmp_path / f"{name}.toml" for name in ("one", "two"))
    for path, size in ((one, 64), (two, 128)):
        path.write_text(
            f'schema = 1\n[model]\nname = "m"\npattern = "M*"\n[megatron]\nhidden_size = {size}\n'
        )
    registry("resolve", one, "--receipt", file, cwd=tmp_path, code=0)
    for command in ("resolve", "args"):
        done = registry(command, two, "--receipt", file, cwd=tmp_path, code=2)
        assert "SEAM-V04" in done.stderr
        assert "recipe.megatron.hidden_size: 64 -> 128" in done.stderr
        assert "--replace" in done.stderr
    reason = ("--reason", "Wider.", "--by", "the author")
    registry("accept", file, "--recipe", two, *reason, cwd=tmp_path, code=0)
    registry("verify", file, "--recipe", two, cwd=tmp_path, code=0)
    (entry,) = json.loads(file.read_text())["accepted"]
    assert [it["what"] for it in entry["differences"]] == ["recipe.megatron.hidden_size"]
    registry("resolve", one, "--receipt", file, cwd=tmp_path, code=2)
    registry("resolve", one, "--receipt", file, "--replace", cwd=tmp_path, code=0)
    assert "accepted" not in json.loads(file.read_text())


def test_a_pipe_has_nothing_to_keep(tmp_path: Path) -> None:
    done = registry("resolve", "M*", "--receipt", "/dev/stdout", "--json", cwd=tmp_path, code=0)
    assert done.stdout.startswith("{")
