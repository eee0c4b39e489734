"""How large report.html is and how long a browser takes to draw it, for deep networks.

    python benchmarks/report_page.py                 a residual and a densely connected network of 200 layers
    python benchmarks/report_page.py --layers 2000

Wants Playwright and a Chromium. The figures are the least of three loads.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnx_lathe

WIDTH = 16


def residual(layers: int) -> onnx.ModelProto:
    nodes, last = [], "x"
    for index in range(layers):
        nodes.append(
            helper.make_node("Conv", [last, f"w{index}"], [f"a{index}"], f"conv{index}", pads=[1] * 4)
        )
        nodes.append(helper.make_node("Relu", [f"a{index}"], [f"b{index}"], f"relu{index}"))
        last = f"b{index}"
        if index % 2:
            nodes.append(
                helper.make_node(
                    "Add", [last, f"s{index}" if index > 1 else "x"], [f"s{index + 2}"], f"add{index}"
                )
            )
            last = f"s{index + 2}"
    return _model(nodes, {f"w{index}": (WIDTH, WIDTH, 3, 3) for index in range(layers)}, last)


def dense(layers: int, block: int = 50) -> onnx.ModelProto:
    """Each layer reads all earlier ones of its block, as torchvision's DenseNet is exported."""
    nodes, shapes, seen = [], {}, ["x"]
    for index in range(layers):
        if len(seen) > block:
            seen = seen[-1:]
        nodes.append(helper.make_node("Concat", seen, [f"c{index}"], f"concat{index}", axis=1))
        shapes[f"w{index}"] = (WIDTH, WIDTH * len(seen), 1, 1)
        nodes.append(helper.make_node("Conv", [f"c{index}", f"w{index}"], [f"a{index}"], f"conv{index}"))
        nodes.append(helper.make_node("Relu", [f"a{index}"], [f"b{index}"], f"relu{index}"))
        seen = [*seen, f"b{index}"]
    return _model(nodes, shapes, seen[-1])


def _model(nodes: list[onnx.NodeProto], shapes: dict[str, tuple[int, ...]], last: str) -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(
            (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), name
        )
        for name, shape in shapes.items()
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH, 8, 8])] for name in ("x", last)
    ]
    graph = helper.make_graph(nodes, "deep", *ends, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def drawn_ms(page: Path) -> tuple[float, float]:
    """(milliseconds until everything is drawn, of the longest task of the page's own code)."""
    from playwright.sync_api import sync_playwright

    best = (np.inf, np.inf)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(3):
            tab = browser.new_page(viewport={"width": 1400, "height": 900})
            tab.goto(page.as_uri())
            tab.wait_for_selector("html[data-drawn]", state="attached", timeout=120_000)
            whole = tab.evaluate("performance.now()")
            best = min(best, (float(tab.get_attribute("html", "data-drawn") or "nan"), whole))
            tab.close()
        browser.close()
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=200)
    options = parser.parse_args()
    for name, build in (("residual", residual), ("dense", dense)):
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / f"{name}.onnx"
            onnx.save(build(options.layers), model)
            out = Path(scratch) / "out"
            np.savez(
                Path(scratch) / "data.npz",
                x=np.random.default_rng(1).standard_normal((20, WIDTH, 8, 8), np.float32),
            )
            onnx_lathe.optimize(
                model, "fold, int8", data=str(Path(scratch) / "data.npz"), out=out, latency=False
            )
            page = out / "report.html"
            code, whole = drawn_ms(page)
            size = page.stat().st_size / 1e6
            print(
                f"{name}, {options.layers} layers: {size:.2f} MB, drawn in {code:.0f} ms, {whole:.0f} ms from the start of loading"
            )


if __name__ == "__main__":
    main()
