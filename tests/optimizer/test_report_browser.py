"""report.html in a real browser: nothing fails, nothing is fetched, everything can be read and used."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnx_lathe.optimizer.report.html.page import render
from tests.support.pages import HOSTILE, chromium, made, opened, several_outputs

VARIANTS = [(width, scheme) for width in (360, 1400) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Path:
    return made(tmp_path_factory.mktemp("run"), "--gate", "sqnr >= -10") / "report.html"


@pytest.mark.parametrize(("width", "scheme"), VARIANTS)
def test_it_draws_without_an_error_or_a_request(
    browser: Any, page_file: Path, width: int, scheme: str
) -> None:
    with opened(browser, page_file, width, scheme) as (page, said, requested):
        assert said == []
        assert requested == [page_file.as_uri()]
        assert (
            page.locator(".plot .main-svg").count() >= 8
        )  # tradeoff, bars, weights, output; two layers each
        assert page.locator(".canvas canvas").count() >= 2
        assert page.evaluate("Lathe.graphs.map((graph) => graph.cy.nodes().length)") == [6, 8]
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("Lathe.dark()") == (scheme == "dark")


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1400, "light")])
def test_it_can_be_read_with_a_screen_reader(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with opened(browser, page_file, width, scheme) as (page, _, _):
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        found = axe.Axe().run(page).response["violations"]
        assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in found] == []


def test_text_of_a_model_stays_text(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file, 1400, "light") as (page, _, _):
        assert page.locator("button.name", has_text=HOSTILE).count() == 1
        page.locator("button.name", has_text=HOSTILE).click()
        page.locator(".choice label", has_text="MACs").click()
        page.wait_for_timeout(200)
        assert page.evaluate("window.hit") is None
        assert page.locator("img, .plot a").count() == 0


def test_tables_sort_and_find(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file, 1400, "light") as (page, _, _):
        table = page.locator("#layers table")
        head = table.locator("th", has_text="Bytes")
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        assert table.locator("tbody th").first.inner_text() == HOSTILE
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        assert table.locator("tbody th").last.inner_text() == HOSTILE
        page.get_by_label("Find a layer by name").fill("las")
        assert table.locator("tbody th").all_inner_texts() == ["last"]


def test_a_layer_is_chosen_by_keyboard(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file, 1400, "light") as (page, said, _):
        assert page.locator("#which").input_value() == HOSTILE  # the largest
        page.locator("button.name", has_text="last").press("Enter")
        assert page.locator("#which").input_value() == "last"
        assert page.locator("tr.chosen th").inner_text() == "last"
        assert page.evaluate("document.activeElement.textContent") == "last"
        assert "Gemm" in page.locator("#chosen .figures").inner_text()
        page.locator("#which").select_option("first")
        assert page.evaluate("Lathe.graphs.map((graph) => graph.cy.nodes('.chosen').length)") == [1, 2]
        heights = (
            "Lathe.graphs.map((graph) => Math.max(...graph.cy.nodes().map((node) => node.data('height'))))"
        )
        closed = page.evaluate(heights)
        page.get_by_role("button", name="Open or close the chosen layer").press("Enter")
        assert all(one > other for one, other in zip(page.evaluate(heights), closed, strict=True))
        assert said == []


def test_the_theme_can_be_chosen(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file, 1400, "light") as (page, said, _):
        ground = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(ground)
        page.get_by_role("button", name="Dark theme").press("Enter")
        assert page.evaluate(ground) != light
        page.get_by_role("button", name="Light theme").press("Enter")
        assert page.evaluate(ground) == light
        assert said == []


def test_the_worst_output_is_on_the_page_and_narrow_tables_keep_their_names(
    browser: Any, tmp_path: Path
) -> None:
    """At 360 px error and bytes lie beside the name, which stays when the table is moved."""
    file = tmp_path / "report.html"
    file.write_bytes(render(several_outputs()))
    with opened(browser, file, 360, "light") as (page, said, _):
        assert said == []
        assert "0.3 dB" in page.locator("#tiles .bad", has_text="Worst output").inner_text()
        assert page.locator("#outputs tbody th").all_inner_texts() == ["boxes", "scores"]
        heads = page.locator("#layers thead th").all_inner_texts()
        assert [head.strip() for head in heads[:3]] == ["Layer", "Bytes", "Error"]
        edges = "[...document.querySelectorAll('#layers tbody tr:first-child > *')].map((one) => one.getBoundingClientRect())"
        assert page.evaluate(f"{edges}[2].right") <= 344
        name = page.evaluate(f"{edges}[0].left")
        page.evaluate("document.querySelector('#layers .scroll').scrollLeft = 120")
        assert page.evaluate(f"{edges}[0].left") == pytest.approx(name, abs=1)
        assert page.evaluate(f"{edges}[1].left") < name


def test_empty_bins_are_drawn_empty(browser: Any, page_file: Path) -> None:
    """The curve runs along each bin's edges, and on the ground where a bin is empty."""
    with opened(browser, page_file, 1400, "light") as (page, _, _):
        drawn = page.evaluate(
            "(({ x, y, line }) => [x, y, line.shape])(Lathe.area({ low: 0, high: 3 }, [0.5, 0, 0.5], 'a', 'red', true))"
        )
        assert drawn == [[0, 0, 1, 2, 3], [0, 50, 0, 50, 0], "hv"]


def test_points_that_lie_on_each_other_share_a_label(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file, 1400, "light") as (page, _, _):
        key = page.locator("#tradeoff .key").inner_text()
        assert "original" in key
        assert "int8" in key
        labels = page.evaluate(
            "[...document.querySelectorAll('#tradeoff .textpoint')].map((one) => one.textContent)"
        )
        numbers = [number for label in labels if label for number in label.split(", ")]
        assert sorted(numbers) == ["0", "1", "2", "3", "4"]
