"""What `inspect` prints: order, columns, JSON, two models side by side, and the page."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.optimizer.cli import main
from tests.support.builders import build, random
from tests.support.command import refused

NETWORK = """(float[N, 3, 8, 8] image) => (float[N, 10] y) {
    a = Conv <pads = [1, 1, 1, 1]> (image, narrow)  b = Relu (a)
    c = Conv (b, wide)  d = Relu (c)  e = Flatten (d)  y = MatMul (e, last)
}"""


def network() -> onnx.ModelProto:
    model = build(NETWORK, narrow=random(4, 3, 3, 3), wide=random(16, 4, 3, 3), last=random(576, 10))
    for node in model.graph.node:
        node.name = node.output[0]
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(network(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[list[str]]:
    assert main(["inspect", *map(str, arguments)]) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def as_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def names(lines: list[list[str]]) -> list[str]:
    start = next(at for at, words in enumerate(lines) if words[0] == "layer")
    stop = next(at for at, words in enumerate(lines) if words[0] == "all")
    return [words[0] for words in lines[start + 1 : stop]]


def test_order(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert names(printed(capsys, path)) == ["image", "a", "c", "y"]
    assert names(printed(capsys, path, "--sort", "weights")) == ["y", "c", "a", "image"]
    assert names(printed(capsys, path, "--sort", "intensity")) == ["c", "a", "y", "image"]
    assert names(printed(capsys, path, "--sort", "op")) == ["a", "c", "image", "y"]
    assert names(printed(capsys, path, "--all")) == ["image", "a", "b", "c", "d", "e", "y"]


def test_columns(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, path, "--columns", "layer,macs,copies,gemm")
    assert ["layer", "MACs", "copies", "d", "x", "k2c", "x", "n"] in lines
    assert ["c", "20.7", "k", "5.06x", "16", "x", "36", "x", "36"] in lines
    everything = " ".join(" ".join(words) for words in printed(capsys, path, "--columns", "all"))
    for title in ("parameters", "memory", "distinct", "Winograd 2, 4", "energy"):
        assert title in everything


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sort", "mac"], "--sort: there is no column 'mac'; did you mean 'macs'?"),
        (["--columns", "layer,weight,bit"], "--columns: there is no column 'bit'; did you mean 'bits'?"),
        (["--shape", "image=1x3xAx8"], "--shape takes NAME=1x3x224x224, not 'image=1x3xAx8'"),
        (["--shape", "image=1x3x0x8"], "--shape takes NAME"),
        (["--batch", "0"], "--batch takes a number from 1 on, not 0"),
        (["--data", "d.npz"], "give --time too"),
        (["--html", "no/folder.html"], "no/folder.html: no is no folder; make it first"),
        (["--optimizer", "adagrad"], "--optimizer: there is no 'adagrad'"),
    ],
)
def test_refusals(path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert said in refused(capsys, ["inspect", str(path), *arguments])


def test_options_of_one_model(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "are for one model" in refused(capsys, ["inspect", str(path), str(path), "--sort", "macs"])


def test_json_has_every_row_and_column(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, path, "--training")
    assert [row["node"] for row in found["layers"]] == ["image", "a", "b", "c", "d", "e", "y"]
    row = found["layers"][3]
    assert row["gemm"] == {"groups": 1, "d": 16, "k2c": 36, "n": 36}
    assert row["sparsity"] == 0
    assert row["winograd_saves"]["winograd23"] == 2.25
    assert row["energy"]["total"] == row["energy"]["arithmetic"] + row["energy"]["dram"]
    assert row["training"]["total"] == sum(
        row["training"][key] for key in ("weights", "kept", "gradients", "optimizer")
    )
    assert found["whole"]["operators"] == {"Conv": 2, "Relu": 2, "Flatten": 1, "MatMul": 1}
    assert found["whole"]["training"]["total"] > sum(row["training"]["total"] for row in found["layers"])


def smaller(path: Path) -> Path:
    """The second convolution with half its weights zero and no ReLU behind, and another product at the end."""
    model = network()
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    values = onnx.numpy_helper.to_array(stored["wide"]).copy()
    values[:8] = 0
    stored["wide"].CopyFrom(onnx.numpy_helper.from_array(values, "wide"))
    del model.graph.node[3]
    model.graph.node[3].input[0] = "c"
    model.graph.node[4].name = "other"
    onnx.save(model, path.with_name("smaller.onnx"))
    return path.with_name("smaller.onnx")


def test_two_models_side_by_side(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = smaller(path)
    lines = printed(capsys, path, other)
    assert [
        "c",
        "Conv",
        "1x16x6x6",
        "576",
        "2.3",
        "kB",
        "20.7",
        "k",
        "0.0",
        "%",
        ">",
        "50.0",
        "%",
        "32",
    ] in lines
    assert ["Relu", "2", "1", "(-1)"] in lines
    assert ["Conv", "2", "2"] in lines
    assert ["weights", "6.44", "k", "6.44", "k", "1x"] in lines
    pairs = as_json(capsys, path, other)["layers"]
    assert pairs == [
        {"before": "a", "after": "a"},
        {"before": "c", "after": "c"},
        {"before": "y", "after": None},
        {"before": None, "after": "other"},
    ]


def test_ratios_of_totals(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build("(float[N, 8] image) => (float[N, 5] y) { y = MatMul (image, w) }", w=random(8, 5))
    onnx.save(model, path.with_name("product.onnx"))
    found = as_json(capsys, path, path.with_name("product.onnx"))
    assert found["operators"]["Conv"] == {"before": 2, "after": 0}
    totals = found["totals"]
    assert totals["weights"] == {"before": 6444, "after": 40, "ratio": 6444 / 40}
    assert totals["ms"] == {"before": None, "after": None, "ratio": None}


def test_what_cannot_be_counted_has_no_ratio(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build("(float[N, C, H] x) => (float[N, 4, M] y) { y = Conv (x, w) }", w=random(4, 3, 3))
    onnx.save(model, path.with_name("open.onnx"))
    totals = as_json(capsys, path, path.with_name("open.onnx"))["totals"]
    assert totals["macs"]["before"] > 0
    for name in ("macs", "activations", "activation_bytes", "energy"):
        assert (totals[name]["after"], totals[name]["ratio"]) == (None, None), name


def test_times(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(path.with_name("data.npz"), image=random(4, 3, 8, 8))
    rows = as_json(capsys, path, "--time", "--data", path.with_name("data.npz"), "--quiet")
    ms = {row["node"]: row["ms"] for row in rows["layers"]}
    ran = {row["node"]: row["ran_as"] for row in rows["layers"]}
    assert min(ms[name] for name in ("a", "c", "y")) > 0
    assert (ran["b"], ran["d"]) == ("in a", "in c")
    assert sum(value or 0 for value in ms.values()) + rows["whole"]["unattributed_ms"] == pytest.approx(
        rows["whole"]["ms"]
    )
    assert any(
        note.startswith("times: of the first samples of the data, image 1x3x8x8")
        for note in rows["whole"]["notes"]
    )


def test_times_of_open_sizes_are_of_the_sizes_that_the_rows_say() -> None:
    model = build("(float[N, 3, H, W] x) => (float[N, 4, H, W] y) { y = Conv (x, w) }", w=random(4, 3, 1, 1))
    found = onnx_lathe.inspect(model, time=True, everything=True)
    side = found.layers[0].output_shape[-1]  # type: ignore[index]
    assert isinstance(side, int)
    assert found.whole.macs == 12 * side * side
    found = onnx_lathe.inspect(model, time=True, shapes={"x": (2, 3, 5, 7)})
    assert found.layers[0].output_shape == (2, 4, 5, 7)
    assert any("x 2x3x5x7" in note for note in found.whole.notes)


def test_the_page(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "layers.html"
    printed(capsys, path, "--html", file)
    text = file.read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=|https?:|@import|url\(", text)
    assert re.findall(r'<th scope="row"[^>]*>([^<]*)</th>', text) == [
        "image",
        "a",
        "b",
        "c",
        "d",
        "e",
        "y",
        "all",
    ]
    assert "color-scheme: light dark" in text


def test_a_name_is_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    model.graph.node[0].name = "<b>[red]</b>"
    onnx.save(model, tmp_path / "named.onnx")
    lines = printed(capsys, tmp_path / "named.onnx", "--html", tmp_path / "page.html")
    assert "<b>[red]</b>" in names(lines)
    assert "<b>" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_page_in_a_browser(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sorts by mouse and keyboard, and the page itself does not scroll sideways on a phone."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("no Chromium")
    printed(capsys, path, "--html", tmp_path / "layers.html")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 700})
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((tmp_path / "layers.html").as_uri())
        rows = page.locator("tbody th")
        page.get_by_role("button", name="MACs", exact=True).click()
        assert rows.all_inner_texts() == ["c", "a", "y", "image", "b", "d", "e"]
        assert page.locator("th[aria-sort=descending]").inner_text() == "MACs"
        page.get_by_role("button", name="layer").press("Enter")
        assert rows.all_inner_texts() == ["a", "b", "c", "d", "e", "image", "y"]
        page.get_by_role("button", name="layer").press("Enter")
        page.get_by_role("button", name="layer").press("Enter")
        assert rows.all_inner_texts() == ["image", "a", "b", "c", "d", "e", "y"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        browser.close()
    assert errors == []
