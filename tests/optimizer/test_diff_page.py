"""The page of `optimize diff`, in a browser: it stands alone, sorts, fits a phone, and has names for screen readers."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.optimizer.diffing.page import page
from tests.support import faults
from tests.support.faults import changed, channel_times, network

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def written(folder: Path) -> Path:
    base = network()
    base.graph.node[0].name = "<b>&'\"node"
    wrong = changed(base, "w2", channel_times(3.0))
    found = onnx_lathe.diff(base, wrong, data={"x": faults.samples()})
    path = folder / "diff.html"
    path.write_text(page(found), encoding="utf-8")
    return path


def test_the_page_stands_alone_and_escapes_names(tmp_path: Path) -> None:
    odd = faults.copied(network())
    for node in odd.graph.node:
        node.input[:] = ["<script>a" if name == "a" else name for name in node.input]
        node.output[:] = ["<script>a" if name == "a" else name for name in node.output]
    onnx.checker.check_model(odd)
    text = page(onnx_lathe.diff(odd, odd, data={"x": faults.samples()}))
    assert "&lt;script&gt;a" in text
    assert text.count("<script>") == 1
    assert "http" not in text
    assert len(written(tmp_path).read_bytes()) < 40_000


@pytest.fixture
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@NEEDS_BROWSER
def test_the_page_in_a_browser(tmp_path: Path, browser: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    place = written(tmp_path).as_uri()
    said: list[object] = []
    for scheme in ("light", "dark"):
        tab = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(place)
        assert said == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        assert axe.run(tab).response["violations"] == []
        tab.close()
    tab = browser.new_page()
    tab.goto(place)
    assert first_rows(tab, 3) == ["a", "a_relu", "b"]
    tab.get_by_role("button", name="SQNR", exact=True).focus()
    tab.keyboard.press("Enter")
    figures = [
        float(text)
        for text in tab.locator("#tensors td:nth-child(3)").evaluate_all(
            "all => all.map(one => one.dataset.v)"
        )
    ]
    assert figures == sorted(figures)
    assert np.isfinite(figures).all()
    assert tab.locator("#tensors th[aria-sort=ascending]").inner_text() == "SQNR"


def first_rows(tab: Any, count: int) -> list[str]:
    texts = tab.locator("#tensors tbody th").all_inner_texts()
    return [text.split()[0] for text in texts[:count]]
