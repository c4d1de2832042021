"""The gate's verdict on the seam in its own workspace, and once nobody needs it."""

from pathlib import Path

from seam_support import registry

REPOSITORY = Path(__file__).resolve().parents[3]


def test_it_is_a_warning_while_a_release_in_use_needs_it_and_an_error_then(tmp_path: Path) -> None:
    kept = registry("check", "plugins/mla", cwd=REPOSITORY, code=0)
    assert "superseded: native '+' in this Megatron; kept for the releases" in kept.stderr
    policy = '[tool.megatron-seams.policy]\nmegatron-core = ">=0.19,<0.20"\n'
    (tmp_path / "pyproject.toml").write_text(policy)
    gone = registry("check", "--workspace", tmp_path, code=1)
    assert "no release that is used here needs it" in gone.stderr
    assert "delete plugins/mla" in gone.stderr


def test_the_audit_says_what_to_delete() -> None:
    done = registry("list", "--owners")
    assert "superseded: native '+' in this Megatron; delete plugins/mla" in done.stdout
