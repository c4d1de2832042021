"""The report: what is on the page, and that nothing on it is markup of others."""

import datetime
import re
from pathlib import Path

import attrs
import pytest

from megatron_seams.governance.codeowners import find_codeowners
from megatron_seams.governance.workspace import read_workspace
from megatron_seams.records.accept import Acceptance, accept
from megatron_seams.records.proof import Proof, write_index
from megatron_seams.records.receipt import make_receipt
from megatron_seams.report import render
from megatron_seams.seams.manifest import parse_manifest
from megatron_seams.upstream.locate import megatron_missing
from megatron_seams.upstream.surface import NativeSurface
from report_pages import PageText, page_of, words
from seam_support import (
    TODAY,
    environment,
    make_seam,
    manifest_table,
    plan,
    recipe,
    registry,
    source_plugin,
    toml,
)

pytestmark = pytest.mark.browser

EVIL = "</style><script>document.title='taken'</script><img src=x onerror=alert(1)>\"' {{ 7*7 }}"


# --- what is on it ----------------------------------------------------------------------------


def test_every_family_and_every_seam_is_on_the_page_with_what_it_waits_for() -> None:
    text = words(page_of())
    for part in (
        "megatron-core 0.19.2",
        "Owner @acme/layers Review by 2027-05-01, in 151 days Introduced 2026-11-01, 30 days ago "
        "Fallback native Waits for upstream's KDA",
        "Tracked PR 7",
        "Fallback refuse Waits for nothing upstream is accepted in its place",
        "lost broken",
        "acme-lost 3.1",
        "SEAM-D02 no package",
        "native M",
        "seam kda 1.0",
        "6 layers, 3 native, 2 seam, 1 experiment",
    ):
        assert part in text, part
    for family in environment(make_seam()).families:
        assert f" {family} " in text, family


def test_each_layer_says_its_number_provider_owner_and_reason() -> None:
    labels = re.findall(r'aria-label="(Layer [^"]+)"', page_of())
    assert len(labels) == 6
    assert labels[1] == (
        "Layer 2, K: kda: seam kda on M (mamba_layer), @acme/layers. "
        "not native; the only seam for it"
    )
    assert labels[3].startswith("Layer 4, N: gla: seam gla (experiment) on M (mamba_layer)")
    assert labels[0].startswith("Layer 1, M: mamba: native M (mamba_layer). native as ")
    assert page_of().count('<li class="begins">') == 1  # where the second stage begins


def test_a_refused_model_shows_which_layers_and_why() -> None:
    page = page_of("MXKX")
    text = words(page)
    assert "4 layers, 2 refused, 2 open" in text
    assert "SEAM-P02" in text
    assert "Layers 2, 4." in text
    assert page.count('class="cell refused" tabindex') == 2


def test_without_a_megatron_that_is_said_first_and_nothing_is_native() -> None:
    where = environment(make_seam("kda"), native=NativeSurface(), faults=[megatron_missing()])
    text = words(render(where, [("m.toml", recipe("MK", tokens={"K": "kda"}))], today=TODAY))
    assert "no Megatron can be read, so nothing is native" in text
    assert text.index("SEAM-S01") < text.index("seam kda 1.0")
    assert " native M" not in text


def test_a_page_without_seams_and_models_says_so() -> None:
    text = words(render(environment(), today=TODAY))
    assert "None is installed: every layer is Megatron's own." in text
    assert "Models" not in text


@pytest.mark.parametrize(
    ("today", "says"),
    [
        (TODAY, None),
        (datetime.date(2027, 4, 30), "it is in 1 day"),
        (datetime.date(2027, 5, 3), "it passed 2 days ago"),
    ],
)
def test_a_review_that_is_near_or_past_stands_out(today: datetime.date, says: str | None) -> None:
    text = words(page_of(today=today))
    assert (says in text) if says else "Review by 2027-05-01, in 151 days" in text


def test_the_page_is_the_same_whenever_it_is_made_of_the_same() -> None:
    assert page_of() == page_of()


def test_what_others_wrote_is_text() -> None:
    seam = make_seam("kda", meaning=EVIL, accepts={"tracking": EVIL})
    model = recipe("MK", tokens={"K": "kda"})
    page = render(environment(seam), [(EVIL, model)], today=TODAY)
    found = PageText(page)
    # The model's file, the seam's tracking and the family, each as it was written.
    assert found.text.count(EVIL) == 3
    assert "img" not in found.tags
    assert found.tags.count("script") == 1
    assert all(name == "href" and value[0] == "#" for _, name, value in found.links)


def test_it_refers_to_nothing_outside_itself() -> None:
    page = page_of()
    assert all(value.startswith("#") for _, _, value in PageText(page).links)
    assert not re.search(r"url\(|@import|https?://", page)
    assert "default-src 'none'" in page


def test_a_reference_to_upstream_s_work_is_a_link_and_plain_words_are_none() -> None:
    tracked = {"tracking": ["NVIDIA/Megatron-LM#7", "https://example.org/a?b=1&c=2"]}
    seam = make_seam("kda", accepts=tracked)
    found = PageText(render(environment(seam), [], today=TODAY))
    outside = [value for tag, _, value in found.links if tag == "a" and value[0] != "#"]
    assert outside == [
        "https://github.com/NVIDIA/Megatron-LM/issues/7",
        "https://example.org/a?b=1&c=2",
    ]
    words = PageText(render(environment(make_seam("kda", accepts={"tracking": "PR 7"})), []))
    assert "PR 7" in words.text
    assert all(value[0] == "#" for _, _, value in words.links)


# --- the verdict ------------------------------------------------------------------------------


def test_the_verdict_says_the_worst_first_and_counts_the_rest() -> None:
    good = render(environment(make_seam()), [("m", recipe("MK", **MODEL_K))], today=TODAY)
    assert "All is in order refused 0 of 1 superseded 0 reviews due 0 experiments 0 " in words(good)
    late = page_of("MXKX", today=datetime.date(2027, 5, 3))
    assert (
        "Refused 1 of 1; broken 1; reviews due 2, 2 overdue refused 1 of 1 broken 1 superseded 0 "
        "reviews due 2, 2 overdue experiments 1 "
    ) in words(late)
    gone = make_seam("latent", "mla", fallback="native", accepts={"symbol-name": "MLA"})
    assert "Superseded 1 refused" not in words(render(environment(gone), today=TODAY))
    assert "Superseded 1 superseded 1 reviews due 0" in words(
        render(environment(gone), today=TODAY)
    )


MODEL_K = {"tokens": {"K": "kda"}}


def test_refused_models_come_first_and_an_unreadable_recipe_is_one(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "b.toml").write_text("schema = 1\n[model]\nname = 3\n")
    (tmp_path / "recipes" / "a.toml").write_text(
        'schema = 1\n[model]\nname = "good"\npattern = "M*"\n'
    )
    registry("report", cwd=tmp_path, code=0)
    text = words((tmp_path / "seams.html").read_text(encoding="utf-8"))
    assert text.index("b.toml refused") < text.index("good a.toml")
    assert "SEAM-C01" in text
    assert "Refused 1 of 2" in text


def test_each_seam_names_the_models_that_use_it() -> None:
    text = words(page_of())
    assert "Used by test model (2 layers)" in text
    assert "Used by test model (1 layer)" in text
    unused = words(render(environment(make_seam()), today=TODAY))
    assert "Used by no model on this page" in unused


def test_a_cell_has_the_colour_of_its_family_and_the_mark_of_its_provider() -> None:
    cells = re.findall(r'class="(cell \w+ k\d)" tabindex="[^"]+" aria-label="Layer (\d)', page_of())
    classes = {number: kind for kind, number in cells}
    assert classes == {
        "1": "cell native k3",  # mamba: attention, gla, kda, mamba, moe have the colours 0 to 4
        "2": "cell seam k2",
        "3": "cell native k0",
        "4": "cell experiment k1",
        "5": "cell seam k2",
        "6": "cell native k4",
    }
    legend = re.findall(r'<span class="cell native (k\d)"[^>]*>&nbsp;</span> (\w+)', page_of())
    assert ("k2", "kda") in legend


def test_each_pipeline_stage_is_a_box_with_its_name() -> None:
    assert re.findall(r'data-stage="([^"]+)"', page_of()) == ["stage 0", "stage 1"]
    assert 'data-stage="' not in page_of("MK*")
    virtual = recipe("M|K|*|M", parallelism={"pipeline-parallel": 2}, **MODEL_K)
    page = render(environment(make_seam()), [("v", virtual)], today=TODAY)
    found = re.findall(r'data-stage="([^"]+)"', page)
    assert found == ["stage 0, rank 0", "stage 1, rank 1", "stage 2, rank 0", "stage 3, rank 1"]


def test_the_layers_of_an_mtp_depth_are_a_box_of_their_own() -> None:
    made = recipe("MK/*-/*-", **MODEL_K)
    page = render(environment(make_seam()), [("m", made)], today=TODAY)
    assert re.findall(r'data-stage="([^"]+)"', page) == ["decoder", "each of 2 MTP depths"]
    labels = re.findall(r'aria-label="((?:MTP l|L)ayer \d, .)', page)
    assert labels == ["Layer 1, M", "Layer 2, K", "MTP layer 1, *", "MTP layer 2, -"]
    assert page.count('tabindex="0"') == 1
    assert "2 layers, 1 native, 1 seam" in words(page)


def test_of_one_thing_the_page_has_the_singular() -> None:
    seam = make_seam()
    day = seam.manifest.seam.introduced + datetime.timedelta(days=1)
    page = words(render(environment(seam), [("k", recipe("K", **MODEL_K))], today=day))
    assert "1 layer, 1 seam" in page
    assert ", 1 day ago" in page
    assert ", in 1 model" in page


# --- a workspace ------------------------------------------------------------------------------


def test_a_workspace_s_checks_owners_receipts_acceptances_and_proofs_are_linked(
    tmp_path: Path,
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.megatron-seams]\n")
    (tmp_path / "CODEOWNERS").write_text("* @acme/core\n/our kda/ @acme/x\n/kda/ @acme/layers\n")
    source_plugin(tmp_path / "kda", "acme-kda", {"acme_kda": manifest_table("kda")})
    old, new = environment(make_seam(version="0.9")), environment(make_seam())
    asked = recipe("MK", **MODEL_K)
    (tmp_path / "receipts").mkdir()
    receipts = [tmp_path / "receipts" / name for name in ("taken.json", "old #1.json")]
    for file in receipts:
        file.write_text(make_receipt(plan(asked, old), asked))
    accept(receipts[0], new, Acceptance(by="Ada", reason="Same kernel.", when=TODAY))
    proof = Proof(folder=tmp_path / "proof", megatron_core="0.18.2", settings={})
    proof.folder.mkdir()
    proof.receipt.write_text(make_receipt(plan(asked, new), asked))
    write_index(proof)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "proof.json").write_text("{}")
    page = tmp_path / "site" / "seams.html"
    text = render(
        new,
        [("kda.toml", asked)],
        today=TODAY,
        workspace=read_workspace(tmp_path),
        codeowners=find_codeowners(tmp_path),
        page=page,
    )
    found = PageText(text)
    links = [value for _, name, value in found.links if name == "href" and value[0] != "#"]
    assert links == [
        "../CODEOWNERS#L3",
        "../receipts/old%20%231.json",
        "../cut",
        "../receipts/taken.json",
        "../proof",
    ]
    read = " ".join(found.text.split())
    for part in (
        "Looked at: 1 seam, 0 recipes, 2 receipts; owners: CODEOWNERS; policy: pyproject.toml.",
        "Owner @acme/layers ( CODEOWNERS line 3)",
        "receipt receipts/old #1.json differs seams.kda.version: 0.9: 1.0 test model 0.19.2 -",
        "receipt receipts/taken.json verifies test model 0.19.2 2026-12-01 by Ada: Same kernel.",
        "proof cut unreadable",
        "proof proof whole test model 0.18.2 -",
        "Checks 1 error, 1 warning",
    ):
        assert part in read, part


def test_a_paper_that_a_summary_names_is_a_link() -> None:
    table = manifest_table("kda")
    table["seam"]["summary"] = "A delta rule (arXiv:2603.14360, and again arXiv:2603.14360)"
    manifest, _ = parse_manifest(toml(table).encode(), file="seam.toml")
    assert manifest is not None
    page = render(environment(attrs.evolve(make_seam(), manifest=manifest)), today=TODAY)
    outside = [value for _, _, value in PageText(page).links if value[0] != "#"]
    assert outside == ["https://arxiv.org/abs/2603.14360"]


# --- the command ------------------------------------------------------------------------------


def test_the_command_writes_the_workspace_s_recipes(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    done = registry("report", "--out", out, cwd=repository, code=0)
    assert str(out) in done.stdout
    page = out.read_text(encoding="utf-8")
    for file in (repository / "recipes").glob("*.toml"):
        assert f'<span class="quiet">{file.name}</span>' in page
    registry("report", "M*", "--out", out, cwd=tmp_path, code=0)
    assert ">M*<" in out.read_text(encoding="utf-8")
    assert "--out" in registry("report", "--out", "no/x.html", cwd=tmp_path, code=2).stderr


def test_the_command_without_a_megatron_says_so_and_exits_as_the_others(tmp_path: Path) -> None:
    (tmp_path / "megatron").mkdir()
    (tmp_path / "megatron" / "core").mkdir()
    (tmp_path / "megatron" / "core" / "__init__.py").touch()
    done = registry("report", "M*", cwd=tmp_path, path=[tmp_path], code=3)
    assert "[SEAM-S0" in done.stderr
    assert "no Megatron can be read" in (tmp_path / "seams.html").read_text(encoding="utf-8")
