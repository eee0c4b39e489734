"""report.html without a browser: when it is written, what is in it, and that it can be made again."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.errors import ExitCode, UsageError
from onnx_lathe.optimizer import layer_errors, reporting
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.pairing import Match
from onnx_lathe.optimizer.pairing import network as seen
from onnx_lathe.optimizer.recipe import parse_calls
from onnx_lathe.optimizer.report.html import page, spectra, summary, vendor
from onnx_lathe.optimizer.report.html.distributions import Weights
from onnx_lathe.optimizer.report.html.document import document
from onnx_lathe.optimizer.report.html.summary import MINUS, TIMES
from onnx_lathe.optimizer.report.record import GateRecord, RunRecord, StepRecord, read_record
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.runtime.running.calibration import open_with
from onnx_lathe.runtime.running.layer_times import node_times
from onnx_lathe.runtime.running.profiling import ModelProfiler
from tests.support.builders import build, random
from tests.support.command import refused
from tests.support.pages import HOSTILE, HOSTILE_TENSOR, made


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("run"), "--no-latency")


def shown(out: Path) -> Any:
    """The data of a page."""
    text = (out / "report.html").read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])


def test_text_of_a_model_neither_ends_the_data_nor_is_a_tag(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert HOSTILE_TENSOR not in text
    assert {HOSTILE} <= {row["name"] for row in shown(out)["layers"]}
    scripts = len(vendor.libraries()) + len(page.CODE) + 1
    assert text.count("<script") - text.count('"<script') == text.count("</script>") == scripts


def test_the_page_may_fetch_nothing_and_runs_its_own_scripts_alone(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="(.*?)">', text)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe-eval" not in policy[1]
    assert "'unsafe-inline'" not in policy[1].split("style-src")[0]
    assert not re.search(r"sourceMappingURL=", text)


def test_it_is_made_again_to_the_last_byte(out: Path, tmp_path: Path) -> None:
    assert main(["report", str(out), "--html", str(tmp_path / "again.html"), "--quiet"]) == 0
    assert (tmp_path / "again.html").read_bytes() == (out / "report.html").read_bytes()
    found = onnx_lathe.report(out, tmp_path / "third.html")
    assert found.path.read_bytes() == (out / "report.html").read_bytes()
    assert found.size_bytes == found.path.stat().st_size


def test_errors_are_those_of_the_layers_outputs(out: Path) -> None:
    """Measured anew: the outputs of both models on the samples that the run took, the first of the evaluation data."""
    measured = layer_errors.read(out)
    assert measured is not None
    assert (measured.source, measured.samples) == ("evaluation samples", 8)
    with np.load(out.parent / "data.npz") as arrays:
        feeds = {"x": arrays["test/x"][:8]}
    for layer, tensor in (("first", "a"), (HOSTILE, HOSTILE_TENSOR), ("last", "y")):
        one, other = (
            open_with(onnx.load(path), [tensor]).run([tensor], feeds)[0]
            for path in (out.parent / "model.onnx", out / "steps" / "04-int8.onnx")
        )
        found = measured.errors[layer]
        assert found["tensor"] == tensor
        assert found["sqnr"] == pytest.approx(
            10 * math.log10(np.square(one).sum() / np.square(one - other).sum()), abs=0.1
        )
        assert found["worst"] == pytest.approx(np.abs(one - other).max(), rel=1e-3)


def test_layers_are_shown_before_and_after(out: Path) -> None:
    rows = {row["name"]: row for row in shown(out)["layers"]}
    assert list(rows) == ["first", HOSTILE, "last"]
    assert rows["first"]["parts"] == ["first_first", "first_second"]
    assert rows["first"]["bytes"][0] == 4 * 8 * 3 * 9
    assert rows["first"]["macs"] == [64 * 8 * 27, 64 * (4 * 27 + 8 * 4)]
    assert rows[HOSTILE]["zeros"][1] == pytest.approx(0.5, abs=0.01)
    assert list(rows[HOSTILE]["sensitivity"]) == ["2 prune"]
    assert list(rows["first"]["sensitivity"]) == ["2 prune"]  # split by then: measured on its parts


def test_weights_have_centroids_and_clip_ranges_and_spectra_their_rank(out: Path) -> None:
    detail = shown(out)["detail"]
    before, after = detail[HOSTILE]["weights"]
    assert sum(before["shares"]) == pytest.approx(1, abs=0.01)
    assert len(after["centroids"]) == len(set(after["centroids"])) == 8
    assert 0.0 in after["centroids"]
    assert after["clip"][1] == -after["clip"][0] > max(after["centroids"])
    assert [one["label"] for one in detail["first"]["weights"]] == [
        "before",
        "after, first factor",
        "after, second factor",
    ]
    original = onnx.load(out.parent / "model.onnx")
    weight = onnx.numpy_helper.to_array(next(one for one in original.graph.initializer if one.name == "w0"))
    values = np.linalg.svd(weight.reshape(8, 27), compute_uv=False)
    (found,) = detail["first"]["spectra"]
    assert (found["by"], found["of"], found["rank"]) == ("svd", "", 4)
    assert found["values"] == pytest.approx(list(values / values[0]), rel=1e-3)


def test_outputs_have_their_calibrated_range(out: Path) -> None:
    first = shown(out)["detail"]["first"]["activation"]
    assert first["tensor"] == first["clip_tensor"] == "b"  # what is quantized lies behind the Relu
    assert first["clip"][0] == 0
    assert sum(first["before"]) == pytest.approx(1, abs=0.01)


def test_graphs_have_a_box_per_layer_and_join(out: Path) -> None:
    graphs = shown(out)["graphs"]
    assert [box["op"] for box in graphs["before"]["boxes"]] == [
        "input",
        "Conv",
        "Conv",
        "Add",
        "Gemm",
        "output",
    ]
    assert graphs["before"]["edges"] == [[0, 1], [1, 2], [2, 3], [1, 3], [3, 4], [4, 5]]
    parts = [box for box in graphs["after"]["boxes"] if box["layer"] == "first"]
    assert [(box["id"], box["part"]) for box in parts] == [("first_first", True), ("first_second", False)]
    assert [op for _, op in parts[1]["members"]] == ["Conv", "Relu", "QuantizeLinear", "DequantizeLinear"]


def test_what_was_skipped_is_grouped_by_reason() -> None:
    skips = [("1 svd", {"node": name, "reason": "too small"}) for name in "abc"]
    skips += [("2 int8", {"node": "a", "reason": "asked"})]
    found = summary.skipped(skips)
    assert [(row["step"], row["nodes"]) for row in found] == [("1 svd", ["a", "b", "c"]), ("2 int8", ["a"])]


def test_no_html_writes_none(tmp_path: Path) -> None:
    out = made(tmp_path, "--no-html", "--no-latency", passes="fold")
    assert sorted(path.name for path in out.iterdir()) == ["model.onnx", "report.json", "steps"]
    assert not (out / "steps" / "layers.json").exists()


def test_a_page_that_fails_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(page, "render", fails)
    monkeypatch.setattr(layer_errors, "measure", fails)
    onnx.save(
        build("(float[N, 4] x) => (float[N, 2] y) { y = MatMul(x, w) }", w=random(4, 2)), tmp_path / "m.onnx"
    )
    out = tmp_path / "out"
    assert main([str(tmp_path / "m.onnx"), "--passes", "fold", "--out", str(out), "--no-latency"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "warning: report.html was not written: ValueError: no ink" in lines
    assert "warning: layers were not measured for the report: ValueError: no ink" in lines
    assert (out / "report.json").is_file()
    assert not (out / "report.html").exists()


def test_the_users_own_page_is_not_taken_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = made(tmp_path, "--no-html", "--no-latency", passes="fold")
    (out / "report.html").write_text("<html>mine</html>")
    capsys.readouterr()
    arguments = [str(tmp_path / "model.onnx"), "--passes", "fold", "--out", str(out)]
    assert "report.html: is there already and not from an earlier run" in refused(capsys, arguments)
    assert (out / "report.html").read_text() == "<html>mine</html>"


def test_an_earlier_page_goes_when_the_next_run_starts(tmp_path: Path) -> None:
    made(tmp_path, "--no-latency", passes="fold")
    assert (tmp_path / "out" / "report.html").is_file()
    made(tmp_path, "--no-latency", "--no-html", "--force", passes="fold")
    assert not (tmp_path / "out" / "report.html").exists()


def test_without_the_original_the_page_says_so(out: Path, tmp_path: Path) -> None:
    moved = out.parent / "model.onnx"
    kept = moved.read_bytes()
    try:
        moved.rename(tmp_path / "moved.onnx")
        found = reporting.report(out, tmp_path / "page.html")
        assert any("no such file" in note for note in found.notes)
        again = reporting.report(out, tmp_path / "page.html", model=tmp_path / "moved.onnx")
        assert again.path.read_bytes() == (out / "report.html").read_bytes()
    finally:
        moved.write_bytes(kept)


def test_refusals(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no folder" in refused(capsys, ["report", str(tmp_path / "nowhere")])
    assert "give the --out of a finished run" in refused(capsys, ["report", str(tmp_path)])
    assert "ends in .html" in refused(capsys, ["report", str(out), "--html", str(tmp_path / "page.pdf")])
    other = str(out / "steps" / "04-int8.onnx")
    assert "is not the model of this run" in refused(capsys, ["report", str(out), "--model", other])
    lost = str(tmp_path / "no" / "page.html")
    assert "its folder does not exist" in refused(capsys, ["report", str(out), "--html", lost])
    (tmp_path / "report.json").write_text('{"schema": 1}')
    assert "is no record of a run" in refused(capsys, ["report", str(tmp_path)])
    with pytest.raises(UsageError, match="paths"):
        reporting.report(3)  # type: ignore[arg-type]


def test_a_record_is_read_as_it_was_written(out: Path) -> None:
    found = read_record(out / "report.json")
    assert found.as_json() == json.loads((out / "report.json").read_text())
    assert math.isinf(found.baseline["sqnr"])


def deep(layers: int, width: int = 16) -> onnx.ModelProto:
    """A residual network of so many convolutions."""
    lines, weights, last = [], {}, "x"
    for index in range(0, layers, 2):
        lines += [f"a{index} = Conv<pads=[1,1,1,1]>({last}, w{index})", f"b{index} = Relu(a{index})"]
        lines += [f"c{index} = Conv<pads=[1,1,1,1]>(b{index}, w{index + 1})"]
        lines += [f"d{index} = Add(c{index}, {last})", f"e{index} = Relu(d{index})"]
        weights |= {f"w{index + more}": random(width, width, 3, 3) for more in (0, 1)}
        last = f"e{index}"
    text = "\n".join([*lines, f"y = Relu({last})"])
    return build(f"(float[N, {width}, 8, 8] x) => (float[N, {width}, 8, 8] y) {{ {text} }}", **weights)


def record(model: str = "deep.onnx", **final: float) -> RunRecord:
    step = StepRecord(1, "int8", {}, "steps/01-int8.onnx", True, 1.0, 100, dict(final), [], [], {})
    facts = {"path": model, "sha256": "0", "size_bytes": 400}
    baseline = {"size": 400.0, "top1": 0.9, "macs": 10.0}
    return RunRecord("1", [], facts, baseline=baseline, steps=[step], exit_code=0, outcome="done")


def test_two_hundred_layers_stay_below_three_megabytes() -> None:
    side = seen(deep(200))
    found = document(record(size=100.0), side, side, None, [])
    assert len(found["detail"]) == len(found["layers"]) == 200
    assert len(page.render(found)) < page.LIMIT_BYTES


def test_a_page_that_would_be_too_large_leaves_out_and_says_what() -> None:
    rows = [{"name": f"layer{index}", "bytes": [index, index], "filler": "x" * 500} for index in range(4000)]
    side = seen(deep(2))
    found = document(record(size=100.0), side, side, None, []) | {"layers": rows}
    text = page.render(found)
    assert len(text) < page.LIMIT_BYTES
    assert b"the 2,000 largest layers are listed" in text


def test_what_the_reader_learns_first() -> None:
    found = record(size=100.0, top1=0.89, macs=10.0)
    assert summary.sentence(found).startswith(
        f"The model is 4.0{TIMES} smaller: 400 B → 100 B. Top-1 accuracy moves by {MINUS}1.00 points"
    )
    tiles = {tile["title"]: (tile["value"], tile["kind"]) for tile in summary.tiles(found)}
    assert tiles["File size"] == (f"4.0{TIMES} smaller", "good")
    assert tiles["Top-1"] == (f"{MINUS}1.00 points", "bad")
    assert tiles["Multiply-accumulates"] == ("Unchanged", "plain")
    assert summary.verdict(found)["kind"] == "plain"
    found.gates = [GateRecord("top1 drop <= 2%", "model", True, "")]
    assert summary.verdict(found) == {"kind": "good", "text": "The gate passed"}
    assert {tile["title"]: tile["kind"] for tile in summary.tiles(found)}[
        "Top-1"
    ] == "plain"  # it was allowed
    found.gates.append(GateRecord("size <= 1", "model", False, ""))
    found.end(ExitCode.GATE_FAILED)
    assert summary.verdict(found) == {"kind": "bad", "text": "1 of 2 gates failed"}
    larger = summary.tiles(record(size=800.0))[0]
    assert (larger["value"], larger["kind"]) == (f"2.0{TIMES} larger", "bad")


def test_the_command_is_quoted_for_a_shell() -> None:
    found = record(size=1.0)
    found.command = ["my model.onnx", "--gate", "top1 drop <= 1%"]
    assert summary.command(found) == "optimize 'my model.onnx' --gate 'top1 drop <= 1%'"
    found.command = []
    assert summary.command(found) == ""
    assert summary.called(found).startswith("onnx_lathe.optimize('deep.onnx', 'int8'")


def test_layers_that_equalize_rescaled_are_not_compared() -> None:
    step = StepRecord(1, "equalize", {}, "f", True, 1.0, 1, {}, [{"node": "Conv_0", "what": ""}], [], {})
    assert "on purpose" in layer_errors.rescaled([step])["Conv_0"]


def test_an_equal_layer_is_called_equal() -> None:
    one = random(4, 4)
    found = layer_errors.compare(Match("a", "t"), one, one.copy())
    assert found["sqnr"] is None
    assert "reason" not in found
    assert "shape" in layer_errors.compare(Match("a", "t"), one, one[:2])["reason"]


def test_spectra_leave_out_what_is_no_matrix() -> None:
    side = seen(
        build("(float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }", w=np.zeros((4, 4), np.float32))
    )
    assert spectra.spectrum("nothing", 1, Weights(side)) is None
    assert spectra.spectrum("MatMul_0", 1, Weights(side)) is None  # all zeros


@pytest.mark.parametrize(
    "option, ranks", [("layers={w: 4}", {"inputs": 4, "outputs": 4}), ("layers={w: 7}, form=cp", {"inputs": 6, "outputs": 7})]
)  # fmt: skip
def test_a_layer_split_in_three_has_a_spectrum_for_each_side(option: str, ranks: dict[str, int]) -> None:
    """Of the weight [9, 6, 3, 3] by its outputs and by its inputs; seven terms are more than six inputs have."""
    weight = random(9, 6, 3, 3)
    text = "(float[N, 6, 8, 8] x) => (float[N, 9, h, w] y) { y = Conv (x, w) }"
    model = build(text, w=weight)
    (call,) = parse_calls(f"tucker({option})", "passes")
    after, report = apply_pass(configure(find("tucker"), call.options), model, Context())
    assert [node.op_type for node in after.graph.node] == ["Conv"] * 3
    edits = [{"node": edit.node, "what": edit.what} for edit in report.edits]
    step = StepRecord(1, "tucker", {}, "f", True, 1.0, 1, {}, edits, [], {})
    ((name, chosen),) = spectra.chosen_ranks([step]).items()
    found = spectra.spectra(name, chosen, Weights(seen(model)))
    assert {one["of"]: one["rank"] for one in found} == ranks
    for one in found:
        rows = weight if one["of"] == "outputs" else weight.transpose(1, 0, 2, 3)
        values = np.linalg.svd(rows.reshape(len(rows), -1), compute_uv=False)
        assert one["values"] == pytest.approx(list(values / values[0]), rel=1e-3)
        assert (one["by"], one["full"]) == ("tucker", len(rows))


def test_libraries_are_the_ones_that_the_list_names(tmp_path: Path) -> None:
    assert vendor.changed() == []
    for one in vendor.libraries():
        assert "MIT" in one["licence"]
        assert "copyright" in (vendor.ASSETS / one["licence_file"]).read_text(encoding="utf-8").lower()
        (tmp_path / one["file"]).write_bytes(b"another")
    assert len(vendor.changed(tmp_path)) == len(vendor.libraries())


def test_a_layer_is_followed_through_its_activation() -> None:
    """Conv -> SiLU, as exporters write it, then a Concat, which is no part of it."""
    side = seen(
        build(
            """(float[N, 4, 8, 8] x) => (float[N, 8, 8, 8] y) {
                a = Conv<pads=[1, 1, 1, 1]>(x, w)
                s = Sigmoid(a)
                b = Mul(a, s)
                y = Concat<axis=1>(b, b)
            }""",
            w=random(4, 4, 3, 3),
        )
    )
    assert side.behind("Conv_0") == ["a", "b"]


def test_what_equals_the_original_is_drawn_above_the_rest() -> None:
    found = record(size=100.0, sqnr=20.0)
    found.baseline = {"size": 400.0, "sqnr": math.inf}
    tradeoff = document(found, None, None, None, [])["tradeoff"]
    assert [(point["label"], point["value"]) for point in tradeoff["points"]] == [
        ("original", 35.0),
        ("1 int8", 20.0),
    ]
    assert tradeoff["equal"] == 35.0


def test_every_layer_has_its_milliseconds() -> None:
    """In kernels that run in blocks of channels, too, which carry no name of the model's node."""
    side = seen(deep(4))
    feeds = {"x": random(1, 16, 8, 8)}
    times = node_times(side.model, ModelProfiler(lambda session: feeds, 0.01))
    assert all(sum(times.get(node, 0.0) for node in side.nodes_behind(name)) > 0 for name in side.layers)
