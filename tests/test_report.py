"""The report: what is on the page, that nothing on it is markup of others, and a real browser."""

import datetime
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import attrs
import pytest
from playwright.sync_api import Browser, Page, Request, sync_playwright

from megatron_seams.errors import ManifestMissing
from megatron_seams.governance.codeowners import find_codeowners
from megatron_seams.governance.workspace import read_workspace
from megatron_seams.records.accept import Acceptance, accept
from megatron_seams.records.proof import Proof, write_index
from megatron_seams.records.receipt import make_receipt
from megatron_seams.report import render
from megatron_seams.seams.manifest import parse_manifest
from megatron_seams.seams.seam import BrokenSeam
from megatron_seams.upstream.locate import megatron_missing
from megatron_seams.upstream.surface import NativeSurface
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

MODEL = {"tokens": {"K": "kda", "N": "gla"}, "policy": {"experiments": ["gla"]}}
EVIL = "</style><script>document.title='taken'</script><img src=x onerror=alert(1)>\"' {{ 7*7 }}"


def page_of(pattern: str = "MK*|NKE", **options: Any) -> str:
    """A page with three seams, one of them on trial and one broken, and a model."""
    kda = make_seam("kda", fallback="native", accepts={"symbol-name": "KDA", "tracking": "PR 7"})
    lost = BrokenSeam(
        name="lost",
        distribution="acme-lost",
        version="3.1",
        faults=(ManifestMissing(asked="a", found="no package", next="c", subject="lost"),),
    )
    where = environment(kda, make_seam("gla", "gla", status="experiment"), broken=[lost])
    models = [("model.toml", recipe(pattern, **MODEL))]
    return render(where, models, today=options.pop("today", TODAY))


class _Text(HTMLParser):
    """The text of a page by element, and every attribute that could fetch something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []
        self.links: list[tuple[str, str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " "  # two cells of a table are two words
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "poster") or name[:2] == "on":
                self.links.append((tag, name, value or ""))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["style"], ["script"]):
            self.text += data


def words(page: str) -> str:
    return " ".join(_Text(page).text.split())


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
    found = _Text(page)
    # The model's file, the seam's tracking and the family, each as it was written.
    assert found.text.count(EVIL) == 3
    assert "img" not in found.tags
    assert found.tags.count("script") == 1
    assert all(name == "href" and value[0] == "#" for _, name, value in found.links)


def test_it_refers_to_nothing_outside_itself() -> None:
    page = page_of()
    assert all(value.startswith("#") for _, _, value in _Text(page).links)
    assert not re.search(r"url\(|@import|https?://", page)
    assert "default-src 'none'" in page


def test_a_reference_to_upstream_s_work_is_a_link_and_plain_words_are_none() -> None:
    tracked = {"tracking": ["NVIDIA/Megatron-LM#7", "https://example.org/a?b=1&c=2"]}
    seam = make_seam("kda", accepts=tracked)
    found = _Text(render(environment(seam), [], today=TODAY))
    outside = [value for tag, _, value in found.links if tag == "a" and value[0] != "#"]
    assert outside == [
        "https://github.com/NVIDIA/Megatron-LM/issues/7",
        "https://example.org/a?b=1&c=2",
    ]
    words = _Text(render(environment(make_seam("kda", accepts={"tracking": "PR 7"})), []))
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
    found = _Text(text)
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
    outside = [value for _, _, value in _Text(page).links if value[0] != "#"]
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


# --- in a browser -----------------------------------------------------------------------------

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if found is None and not os.environ.get("CI"):
        pytest.skip("there is no chromium here; .ci/run installs Debian's")
    assert found, "continuous integration has a chromium: .ci/run installs it"
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def opened(
    browser: Browser, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Page, list[str]]]:
    """The page in a browser, and everything that it asked for; settings by parametrisation."""
    file = tmp_path / "page.html"
    file.write_text(page_of("MK*ME" * 6 + "|NKE"), encoding="utf-8")
    context = browser.new_context(**getattr(request, "param", {}))
    page = context.new_page()
    asked: list[str] = []

    def note(sent: Request) -> None:
        asked.append(sent.url)

    page.on("request", note)
    page.on("pageerror", lambda error: asked.append(f"error: {error}"))
    page.on("console", lambda message: asked.append(f"console: {message.text}"))
    page.goto(file.as_uri())
    yield page, asked
    assert asked == [file.as_uri()]  # itself, no complaint of a script, and no other request
    context.close()


WIDE = {"viewport": {"width": 1200, "height": 900}}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
SCHEMES = [
    {**size, "color_scheme": scheme} for size in (WIDE, PHONE) for scheme in ("light", "dark")
]

#: The contrast of every text with what is behind it, by WCAG 2's formula; the smallest ratios.
CONTRAST = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const part = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = (element) => {
    for (let it = element; it; it = it.parentElement) {
      const colour = channels(getComputedStyle(it).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((it) => it.nodeType === 3 && it.data.trim());
    if (!own || element.matches("script, .skip") || !element.getClientRects().length) continue;
    const [a, b] = [channels(getComputedStyle(element).color), behind(element)].map(luminance);
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML.slice(0, 80)]);
  }
  return found.sort((a, b) => a[0] - b[0]).slice(0, 5);
}"""


@pytest.mark.parametrize("opened", SCHEMES, indirect=True)
def test_it_is_readable_in_light_and_dark_on_a_desk_and_on_a_phone(
    opened: tuple[Page, list[str]],
) -> None:
    page, _ = opened
    for ratio, element in page.evaluate(CONTRAST):
        assert ratio >= 4.5, element  # WCAG 2, level AA
    width, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= inner  # nothing is cut off or scrolls sideways
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 22, 26)" if dark else "rgb(251, 250, 248)")


@pytest.mark.parametrize("opened", [{**WIDE, "offline": True}], indirect=True)
def test_a_layer_that_is_pointed_at_says_its_provider_and_reason(
    opened: tuple[Page, list[str]],
) -> None:
    page, _ = opened
    told = page.locator(".note")
    assert told.inner_text() == "33 layers, 25 native, 7 seam, 1 experiment"
    page.get_by_role("button", name="Layer 2, K").hover()
    assert told.inner_text().split("\n") == [
        "Layer 2, K: kda: seam kda on M (mamba_layer), @acme/layers",
        "not native; the only seam for it",
    ]
    page.get_by_role("button", name="Layer 1, M").hover()
    assert told.inner_text().startswith("Layer 1, M: mamba: native M (mamba_layer)")


@pytest.mark.parametrize("opened", [PHONE], indirect=True)
def test_a_layer_that_is_tapped_says_the_same(opened: tuple[Page, list[str]]) -> None:
    page, _ = opened
    page.get_by_role("button", name="Layer 31, N").tap()
    assert page.locator(".note").inner_text().startswith("Layer 31, N: gla: seam gla (experiment)")


@pytest.mark.parametrize("opened", [{**PHONE, "offline": True}], indirect=True)
def test_a_search_leaves_what_has_every_word(opened: tuple[Page, list[str]]) -> None:
    page, _ = opened
    search = page.get_by_role("searchbox")
    items = page.locator("[data-find]")
    search.fill("EXPERIMENT gla")
    assert [it.split("\n")[0] for it in items.filter(visible=True).all_inner_texts()] != []
    shown = " ".join(items.filter(visible=True).all_inner_texts())
    assert "gla" in shown
    assert "lost" not in shown
    assert page.locator("#findings").is_hidden()
    total = items.count()
    assert page.locator("output").inner_text().endswith(f" of {total}")
    search.fill("mamba_layer")  # a layer's own text, which is shown when it is pointed at
    assert page.locator(".model").is_visible()
    search.fill("nothing has this")
    assert items.filter(visible=True).count() == 0
    search.fill("")
    assert items.filter(visible=True).count() == total
    assert page.locator("#findings").is_visible()


@pytest.mark.parametrize("opened", [PHONE], indirect=True)
def test_on_a_phone_the_page_is_not_much_longer_than_on_a_desk(
    opened: tuple[Page, list[str]],
) -> None:
    page, _ = opened
    height = "document.documentElement.scrollHeight"
    phone = page.evaluate(height)
    page.set_viewport_size({"width": 1200, "height": 900})
    assert phone < 1.4 * page.evaluate(height)


@pytest.mark.parametrize("opened", [WIDE], indirect=True)
def test_a_keyboard_reaches_every_layer_and_a_strip_is_one_stop(
    opened: tuple[Page, list[str]],
) -> None:
    page, _ = opened
    focused = "document.activeElement.dataset.head || document.activeElement.textContent.trim()"

    def press(key: str) -> str:
        page.keyboard.press(key)
        answer: str = page.evaluate(focused)
        return answer

    stops = [press("Tab") for _ in range(8)]
    assert stops.pop(0) == "To the content"
    assert [" ".join(stop.split()) for stop in stops[:4]] == [
        "Models 1",
        "Findings 1",
        "Seams 3",
        "Families 12",
    ]
    assert stops[4] == ""  # the search
    assert stops[5] == "Layer 1, M: mamba: native M (mamba_layer)"
    assert stops[6] == "The same as a table"
    assert press("Shift+Tab") == stops[5]
    assert press("ArrowLeft") == stops[5]  # the first has nothing before it
    assert press("ArrowRight").startswith("Layer 2, K")
    assert page.locator(".note strong").inner_text().startswith("Layer 2, K")
    assert press("End").startswith("Layer 33, E")
    assert press("Home") == stops[5]
    reached = {press("ArrowRight") for _ in range(40)}
    assert len(reached) == 32
    assert press("Tab") == stops[6]
    assert page.locator("table").first.is_hidden()
    page.keyboard.press("Enter")
    assert page.locator("table").first.is_visible()


@pytest.mark.parametrize("opened", [{**WIDE, "java_script_enabled": False}], indirect=True)
def test_without_scripts_the_table_says_the_same(opened: tuple[Page, list[str]]) -> None:
    page, _ = opened
    page.get_by_text("The same as a table").click()
    row = page.get_by_role("row", name=re.compile("seam kda on M"))
    assert "2, 7, 12, 17, 22, 27, 32" in row.inner_text()
