"""The page of the report in a real browser."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, sync_playwright

from report_pages import page_of

pytestmark = pytest.mark.browser

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
