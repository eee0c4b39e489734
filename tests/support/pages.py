"""A small run with everything that report.html shows, and Chromium to look at it."""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.layer_errors import LayerError, Measured
from onnx_lathe.optimizer.pairing import network as seen
from onnx_lathe.optimizer.report.html.document import document
from onnx_lathe.optimizer.report.record import RunRecord, StepRecord
from tests.support.builders import build, random

HOSTILE = "</script><img src=x onerror=window.hit=1><!--"
"""The name of a node: what would run, or end the data, if it got into the page as it is."""
HOSTILE_TENSOR = "<a href=javascript:window.hit=1>&lt;b%{x}\"'"
RUN = (
    "svd(method=weight,layers={w0:4}),prune(sparsity=0.5,sensitivity=true),codebook(bits=3,min_size=64),int8"
)


def network() -> onnx.ModelProto:
    """A classifier of 8 x 8 pictures with a branch, two of its names hostile."""
    model = build(
        """(float[N, 3, 8, 8] x) => (float[N, 4] y) {
            a = Conv<pads=[1, 1, 1, 1]>(x, w0)
            b = Relu(a)
            c = Conv<pads=[1, 1, 1, 1]>(b, w1)
            d = Add(c, b)
            e = Relu(d)
            f = GlobalAveragePool(e)
            g = Flatten(f)
            y = Gemm<transB=1>(g, w2, b2)
        }""",
        w0=random(8, 3, 3, 3),
        w1=random(8, 8, 3, 3),
        w2=random(4, 8),
        b2=random(4),
    )
    names = ("first", "relu", HOSTILE, "add", "relu2", "pool", "flat", "last")
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
        for listed in (node.input, node.output):
            for place, tensor in enumerate(listed):
                listed[place] = HOSTILE_TENSOR if tensor == "c" else tensor
    return model


def made(folder: Path, *more: str, passes: str = RUN, code: int = 0) -> Path:
    """The output folder of a run on that network."""
    onnx.save(network(), folder / "model.onnx")
    parts = {f"{part}/x": random(32, 3, 8, 8) for part in ("train", "test")}
    labels = {f"{part}/labels": np.arange(32, dtype=np.int64) % 4 for part in ("train", "test")}
    np.savez(folder / "data.npz", **parts, **labels)
    data = ["--train", f"{folder / 'data.npz'}:train", "--eval", f"{folder / 'data.npz'}:test"]
    arguments = [str(folder / "model.onnx"), "--passes", passes, *data, "--quiet"]
    assert main([*arguments, "--out", str(folder / "out"), *more]) == code
    return folder / "out"


def several_outputs() -> dict[str, Any]:
    """The page of a run that ruined one of two outputs, with no figure of the other to show it."""
    model = build(
        "(float[N, 64] x) => (float[N, 64] boxes, float[N, 64] scores) { boxes = MatMul(x, v)\n scores = MatMul(x, w) }",
        v=random(64, 64),
        w=random(64, 64),
    )
    final = {"size": 50.0, "top1": 0.9, "sqnr": 0.3, "sqnr[boxes]": 0.3, "sqnr[scores]": 40.0}
    before = final | {key: math.inf for key in final if key.startswith("sqnr")} | {"size": 100.0}
    step = StepRecord(1, "int8", {}, "steps/01-int8.onnx", True, 1.0, 50, final, [], [], {})
    facts = {"path": "model.onnx", "sha256": "0", "size_bytes": 100}
    record = RunRecord("1", [], facts, baseline=before, steps=[step], exit_code=0, outcome="done")
    errors: dict[str, LayerError] = {"MatMul_0": {"sqnr": 0.3}, "MatMul_1": {"sqnr": 40.0}}
    side = seen(model)
    return document(record, side, side, Measured("evaluation samples", 8, errors), [])


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of Playwright's; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium here to look at the page with")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, file: Path, width: int, scheme: str) -> Iterator[tuple[Any, list[str], list[str]]]:
    """(the page with everything drawn, what its console said, what it requested)."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    requested: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)
    yield page, said, requested
    page.close()
