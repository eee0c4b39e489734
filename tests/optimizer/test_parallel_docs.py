"""docs/parallel.md has the figures of the commands, and its remarks hold in them; the simulator beside runs."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from onnx_lathe.optimizer.cli import main
from tests.support import vgg16
from tests.support.house import ROOT

PAGE = (ROOT / "docs" / "parallel.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "parallel.py"), run_name="imported")


def rows(name: str) -> dict[str, list[str]]:
    """First cell -> the others of a table of the page."""
    (found,) = re.findall(rf"<!-- table: {name} -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()[2:]]
    return {line[0]: line[1:] for line in lines}


def test_the_tables_are_those_of_the_commands(script: dict[str, Any]) -> None:
    if script["filled"](PAGE) != PAGE:
        pytest.fail(f"docs/parallel.md is not what the commands print now; run: {script['COMMAND']}")


def test_a_table_is_what_the_terminal_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = vgg16.saved(tmp_path, "N")
    assert main(["inspect", str(path), "--batch", "32", "--parallel", "4"]) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for layer in ("conv1_2", "conv4_1", "fc6", "fc8"):
        product, data, height, filters, channels, *_ = rows("vgg16 layers")[layer]
        width = height
        expected = " ".join([layer, product, data, height, width, filters, channels])
        assert any(line.startswith(expected) for line in shown), expected


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "resnet50"])
def test_fully_connected_layers_want_filters_or_channels(name: str) -> None:
    found = {layer: cells for layer, cells in rows(f"{name} layers").items() if layer.startswith("fc")}
    assert found
    assert all(cells[6] in ("filter", "channel") for cells in found.values())


def test_what_was_measured_is_put_beside(script: dict[str, Any], tmp_path: Path) -> None:
    path = vgg16.saved(tmp_path, "N")
    flops = sum(3 * 2 * macs for macs in [15_470_264_320]) - 2 * 64 * 27 * 224 * 224
    alone = {"model": str(path), "parallel": "data", "workers": 1, "batch": 1, "seconds": flops / 1e12}
    slow = {**alone, "seconds": 1.5 * flops / 1e12}
    measured = {"rate": 1e12, "latency": 1e-6, "bandwidth": 1e9, "runs": [alone, slow]}
    found = list(script["compared"](json.loads(json.dumps(measured))))
    assert [(row[-2], row[-1]) for row in found] == [("1.00", ""), ("0.67", "fails")]


def test_rates_of_products(script: dict[str, Any]) -> None:
    rate = script["rate_of"]({"rates": [[100, 10, 10, 1e9], [100, 10, 1, 1e8]]})
    product = script["Product"]
    assert (rate(product(120, 9, 8)), rate(product(90, 10, 2))) == (1e9, 1e8)
    assert script["rate_of"]({"rate": 5}) == 5.0
