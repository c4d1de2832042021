"""The step that removes a seam, and that it costs one reading of what is installed."""

import datetime
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import attrs
import pytest

from megatron_seams.base.distributions import Installed, by_name, installed
from megatron_seams.governance.audit import audit
from megatron_seams.governance.gate import check
from megatron_seams.governance.preview import preview
from megatron_seams.governance.workspace import Workspace
from megatron_seams.planning import environment as environments
from megatron_seams.planning.environment import Environment
from megatron_seams.report.cards import cards_of
from megatron_seams.seams.discovery import discover
from megatron_seams.seams.removal import how_to_remove
from seam_support import environment, install_plugin, make_seam, manifest_table

RETIRED, OTHERS = 12, 40
TODAY = datetime.date(2026, 1, 1)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the only one on the path."""
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    return tmp_path


def steps() -> dict[str, str]:
    """Name of each installed seam -> how to remove it."""
    projects = tuple(installed())
    return {seam.name: how_to_remove(seam, by_name(projects)) for seam in discover(projects).seams}


def test_a_wheel_is_uninstalled_and_of_several_seams_one_package_goes(site: Path) -> None:
    install_plugin(site, "acme_alone", {"acme_alone": manifest_table("alone", "kda")})
    pair = {f"acme_{name}": manifest_table(name, name) for name in ("left", "right")}
    install_plugin(site, "acme-pair", pair)
    assert steps() == {
        "alone": "uninstall acme_alone",
        "left": f"delete {site}/acme_left and its entry point in acme-pair",
        "right": f"delete {site}/acme_right and its entry point in acme-pair",
    }


def test_the_folder_of_an_editable_project_is_deleted(site: Path) -> None:
    info = install_plugin(site, "Acme.Alone", {"acme_alone": manifest_table("alone", "kda")})
    (site / "work" / "plugins" / "alone").mkdir(parents=True)
    (site / "work" / "pyproject.toml").write_text("[tool.uv.workspace]\n")
    url = (site / "work" / "plugins" / "alone").as_uri()
    (info / "direct_url.json").write_text(json.dumps({"url": url, "dir_info": {"editable": True}}))
    assert steps() == {"alone": "delete plugins/alone"}


def by_the_audit(here: Environment) -> Iterable[str]:
    return (row.note for row in audit(here, today=TODAY).families)


def by_the_gate(here: Environment) -> Iterable[str]:
    return (verdict.finding.next for verdict in check(here, Workspace()).verdicts)


def by_the_preview(here: Environment) -> Iterable[str]:
    return (change.why[0] for change in preview(here, here).seams)


def by_the_page(here: Environment) -> Iterable[str]:
    cards = cards_of(audit(here, today=TODAY), TODAY, used_by={}, owner_lines={})
    return (card.goes for card in cards)


@pytest.mark.parametrize("texts_of", [by_the_audit, by_the_gate, by_the_preview, by_the_page])
@pytest.mark.parametrize("were_listed", [True, False])
def test_each_distribution_is_read_once_for_all_retired_seams(
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    texts_of: Callable[[Environment], Iterable[str]],
    were_listed: bool,
) -> None:
    names = [f"latent_{number}" for number in range(RETIRED)]
    for name in (*names, *(f"other_{number}" for number in range(OTHERS))):
        install_plugin(site, name, {}, entry_points={name: name})
    projects = tuple(installed())
    assert len(projects) == RETIRED + OTHERS
    accepts = {"symbol-name": "MLA"}
    seams = [
        attrs.evolve(make_seam(name, "mla", fallback="native", accepts=accepts), distribution=name)
        for name in names
    ]
    here = attrs.evolve(environment(*seams), projects=projects if were_listed else None)
    key, reads = Installed.key.fget, Counter[str]()
    assert key is not None

    def counted(project: Installed) -> str:
        reads[project.record] += 1
        return str(key(project))

    monkeypatch.setattr(Installed, "key", property(counted))
    monkeypatch.setattr(environments, "installed", lambda: projects)
    shown = " ".join(texts_of(here))
    assert [name for name in names if not re.search(rf"uninstall {name}\b", shown)] == []
    assert reads == {project.record: 1 for project in projects}
