"""The page of a comparison, in a real browser: it draws, sorts and filters, asks no network, and runs no name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab.comparing import make_run
from lab.test_compare import board_of

from llmrs_lightning.cli import main
from llmrs_lightning.lab.report import embedded, page, page_data

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
HOSTILE = "<img src=x onerror=alert(1)>"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two configurations under two seeds, with fusions, lists, tags and hostile names."""
    folder = tmp_path_factory.mktemp("runs")
    skill = {"fused": 2.0, "dnn": 1.0, HOSTILE: 0.2, "</script><script>alert(2)</script>": 0.1}
    for seed in range(2):
        tags = ("joint", HOSTILE) if seed else ("joint",)
        make_run(folder, f"a{seed}", seed, skill=skill, tags=tags, fusions={"stack": 3.0}, lists=True)
        make_run(
            folder, f"b{seed}", seed, options={"model.optimizer.learning_rate": 0.01}, skill={"fused": 0.5, "dnn": 1.0}
        )
    return folder


@pytest.fixture(scope="module")
def file(runs: Path) -> Path:
    """The page of these runs."""
    path = runs / "report.html"
    assert main(["compare", str(runs / "demo"), "--metrics", "auc", "rmse", "ndcg@10", "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start the installed Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Any]:
    """Open the page at 1280 pixels; at the end nothing may have gone wrong, and nothing been asked for."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    view = context.new_page()
    faults: list[str] = []
    view.on("console", lambda message: faults.append(message.text))
    view.on("pageerror", lambda error: faults.append(str(error)))
    view.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    view.on("request", lambda request: faults.append(request.url) if request.url != file.as_uri() else None)
    view.goto(file.as_uri())
    yield view
    context.close()
    assert faults == []


def names(view: Any) -> list[str]:
    return [text.strip() for text in view.locator("#board tbody th").all_inner_texts()]


def column(view: Any, place: int) -> list[float]:
    cells = view.locator(f"#board tbody td:nth-of-type({place})").all_inner_texts()
    return [float(cell.split()[0]) for cell in cells if cell[0].isdigit()]


@needs_browser
def test_every_section_is_there(opened: Any) -> None:
    titles = opened.locator("h2").all_inner_texts()
    expected = "Leaderboard, Metric by metric, Seed by seed, Slices, Quality and cost, Fusions, Learning curves"
    assert titles == [*expected.split(", "), "Recommendations side by side", "Configurations"]
    for section in opened.locator("section").all():
        drawn = section.locator("svg, table, ol")
        assert drawn.count() >= 1
        assert section.locator(".note").inner_text()
    assert opened.locator("svg[role=img]:not([aria-label])").count() == 0
    assert "undefined" not in opened.locator("body").inner_text()
    assert "NaN" not in opened.content().split("</script>")[-1]
    assert (
        opened.locator("svg [d*=NaN], svg [x*=NaN], svg [cx*=NaN], svg [width*=NaN], svg [x*=undefined]").count() == 0
    )


@needs_browser
def test_headers_sort(opened: Any) -> None:
    auc = column(opened, 2)
    assert auc == sorted(auc, reverse=True)
    button = opened.locator("#board th[data-key=rmse] button")
    for reverse, said in ((False, "ascending"), (True, "descending")):
        opened.locator("#board th[data-key=rmse] button").click()
        rmse = column(opened, 3)
        assert rmse == sorted(rmse, reverse=reverse)
        assert opened.locator("#board th[aria-sort]:not([aria-sort=none])").count() == 1
        assert opened.locator("#board th[data-key=rmse]").get_attribute("aria-sort") == said
    assert button.evaluate("button => button === document.activeElement")
    opened.keyboard.press("Shift+Tab")
    opened.keyboard.press("Enter")  # auc, from the keyboard
    assert column(opened, 2) == auc
    opened.locator("#board th[data-key=system] button").click()
    assert [name for name in names(opened) if name.isalpha()] == sorted(
        name for name in names(opened) if name.isalpha()
    )


@needs_browser
def test_filters_filter(opened: Any) -> None:
    total = len(names(opened))
    assert total == 4 + 1 + 2 + 2
    opened.fill("#text", "FUSED 0.01")
    assert names(opened) == ["fused"]
    assert opened.locator("#count").inner_text() == f"1 of {total} systems"
    opened.fill("#text", "nothing of this name")
    assert (
        opened.locator("main").inner_text().count("No system is left by the filter.")
        == opened.locator("section").count()
    )
    opened.fill("#text", "")
    opened.select_option("#group", index=2)
    assert len(names(opened)) == 2
    opened.select_option("#group", index=0)
    opened.select_option("#tag", "joint")
    assert len(names(opened)) == 5
    opened.select_option("#tag", index=0)
    assert len(names(opened)) == total


@needs_browser
def test_charts_follow_the_metric(opened: Any) -> None:
    for metric in ("rmse", "ndcg@10", "auc"):
        opened.select_option("#metric", metric)
        assert opened.locator("section", has_text="Seed by seed").locator(".note").inner_text().startswith(metric)
    assert opened.locator("section", has_text="Learning curves").locator("path").count() >= 2
    assert opened.locator("section", has_text="Slices").locator("tbody tr").count() >= 4


@needs_browser
def test_details_and_marks(opened: Any) -> None:
    assert opened.locator("#board small", has_text="reference").count() == 3
    assert opened.locator("#board .better, #board .worse").count() > 0
    label = opened.locator("#board .worse").first.get_attribute("aria-label")
    assert re.search(r"significantly worse than learning_rate=0.001/fusion/stack, p", label)
    opened.get_by_label("Below each value").select_option("p")
    assert opened.locator("#board small", has_text="p = ").count() > 0


@needs_browser
def test_lists_side_by_side(opened: Any) -> None:
    section = opened.locator("section", has_text="Recommendations side by side")
    assert section.locator("ol").count() == 2
    assert section.locator("ol").first.locator("li").count() == 5
    assert "Film 1 <b>" in section.inner_text()
    assert section.locator("b").count() == 0
    shared = section.locator(".both").count()
    left = section.get_by_label("Left")
    section.get_by_label("Right").select_option(left.input_value())
    assert section.locator(".both").count() == 10 >= shared


@needs_browser
def test_hostile_names_are_text(opened: Any) -> None:
    assert HOSTILE in names(opened)
    assert opened.locator("img").count() == 0
    assert opened.locator("script").count() == 6
    assert opened.locator("#tag option", has_text=HOSTILE).count() == 1


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(opened: Any, width: int, scheme: str) -> None:
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size({"width": width, "height": 844})
    opened.wait_for_function(
        "width => [...document.querySelectorAll('main svg')].every(s => s.clientWidth <= width)", arg=width
    )
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    small = """() => [...document.querySelectorAll("body *")]
        .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.getClientRects().length)
        .filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.outerHTML)"""
    assert opened.evaluate(small) == []
    contrast = opened.evaluate(CONTRAST)
    assert min(contrast.values()) >= 4.5, contrast


# of each colour that text has, against what the page and its panels are painted with
CONTRAST = """() => {
  const rgb = name => {
    const e = document.createElement("i");
    e.style.color = `var(--${name})`;
    document.body.append(e);
    const v = getComputedStyle(e).color.match(/[\\d.]+/g).slice(0, 3).map(Number);
    e.remove();
    return v;
  };
  const light = name => rgb(name).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = {};
  for (const ink of ["ink", "soft", "good", "bad"]) for (const ground of ["paper", "panel", "faint"]) {
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    found[`${ink} on ${ground}`] = (a + 0.05) / (b + 0.05);
  }
  return found;
}"""


@needs_browser
def test_labels_of_every_control(opened: Any) -> None:
    unnamed = "[...document.querySelectorAll('input, select')].filter(e => !e.labels.length).length"
    assert opened.evaluate(unnamed) == 0


def test_embedded_data_stay_inside_their_element() -> None:
    values = {"a": "</script><!--", "b": "\u2028 & 'x' \"y\"", "c": [1.5, None]}
    text = embedded(values)
    assert not set("<>&") & set(text)
    assert json.loads(text) == values


def test_page_is_one_file_without_addresses(runs: Path) -> None:
    board, groups = board_of(runs / "demo", metrics=("auc",))
    text = page(board, groups, "{{data}} & <b>")
    assert "<title>{{data}} &amp; &lt;b&gt;</title>" in text
    without_namespace = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(
        r"https?://|@import|url\(|<link|innerHTML|outerHTML|insertAdjacent|document\.write", without_namespace
    )
    assert str(runs) not in text


def test_data_of_the_page(runs: Path) -> None:
    board, groups = board_of(runs / "demo", metrics=("auc", "rmse"))
    data = page_data(board, groups)
    systems = {system["name"]: i for i, system in enumerate(data["systems"])}
    stack = "learning_rate=0.001/fusion/stack"
    numbers = {fusion["system"]: dict(fusion["numbers"]) for fusion in data["fusions"]}
    assert numbers == {stack: pytest.approx({"dnn": 0.3, "knn": -0.1})}
    assert data["systems"][systems[stack]]["seconds"] == 12.5
    assert data["systems"][systems["popularity"]]["seconds"] is None
    curve = data["curves"][systems["learning_rate=0.01/dnn"]]["auc"]
    assert curve == [[0, pytest.approx(0.555)], [1, 0.6]]
    assert data["slices"]["cuts"][0]["labels"] == ["top", "rest"]
    top, rest = data["slices"]["values"][systems["popularity"]]["auc"][0]
    assert (top, rest) == (0.5, pytest.approx(0.48))
    assert data["options"] == [["learning_rate", ["0.001", "0.01"]]]
    assert data["lists"]["repeat"] == "seed 0"
    assert data["lists"]["entries"][systems[stack]][0][0] == [data["lists"]["items"].index("Film 3 <b>"), 1]


def test_fifty_systems_under_five_seeds_stay_below_two_megabytes(tmp_path: Path) -> None:
    members = {f"member_{i:02d}": i / 20 for i in range(47)}
    for seed in range(5):
        make_run(tmp_path, f"a{seed}", seed, skill={"fused": 3.0, **members})
    board, groups = board_of(tmp_path, metrics=("auc", "gauc", "rmse", "log_loss", "accuracy", "ndcg@10"))
    assert len(board.entries) == 50
    assert len(page(board, groups, "many").encode()) < 2_000_000
