"""`optimize gate` as it is typed: metrics of every kind, intervals and tolerances."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.running import memory
from tests.support.builders import build, random
from tests.support.command import refused
from tests.support.judged import PASSED_ON, SAMPLES, classifiers, pair

MASKS = "(float[n,3,4,4] x) => (float[n,3,4,4] y) { y = Mul(x, s) }"
ROWS = "(float[n,5,6] x) => (float[n,5,6] y) { y = Mul(x, s) }"
PLACES = "(float[n,6,4] x) => (float[n,6,4] y) { y = Mul(x, s) }"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands are typed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def verdicts(capsys: pytest.CaptureFixture[str], command: list[str], *gates: str) -> list[dict]:
    """What --json says of these gates."""
    capsys.readouterr()
    main([*command, "--json", *(word for gate in gates for word in ("--gate", gate))])
    return json.loads(capsys.readouterr().out)["gates"]


def test_a_drop_that_few_samples_cannot_tell_from_none(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = classifiers(changed=2)
    assert main([*command, "--gate", "top1 drop <= 5%"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "gate passed  top1 drop <= 5%: 2.5 points, 95 % interval -6 to 13 (100 % -> 97.5 %)"
    )
    assert said.endswith(
        "2.5 points to spare; these 40 samples cannot tell it from none; the limit lies within the interval\n"
    )
    assert main([*command, "--gate", "top1 drop <= 5%", "--confidence", "95%"]) == 3
    said = capsys.readouterr().out
    assert "judged by its upper end, missed by 7.881 points" in said
    assert (
        main([*command, "--gate", "top1 drop <= 15%", "--gate", "size ratio >= 0.5", "--confidence", "0.95"])
        == 0
    )
    (found,) = verdicts(capsys, command, "top1 drop <= 5%")
    assert found["interval"]["method"] == "Tango"
    assert found["interval"]["samples"] == SAMPLES
    assert found["measured"] == pytest.approx(0.025)


def test_relative_drops(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = classifiers(changed=8)
    assert main([*command, "--gate", "top1 drop <= 20% relative"]) == 0
    assert "15 % of the original's, 95 % interval" in capsys.readouterr().out
    assert main([*command, "--gate", "top1 drop <= 14.9% relative"]) == 3
    assert "write 14.9%" in refused(capsys, [*command, "--gate", "top1 drop <= 14.9 relative"])
    assert "leave 'relative' out" in refused(capsys, [*command, "--gate", "top1 >= 90% relative"])


def test_a_tolerance_for_other_kernels_is_said_where_it_was_needed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*classifiers(changed=8), "--gate", "top1 drop <= 14%"]
    assert main([*command, "--tolerance", "0.5%"]) == 3
    assert main([*command, "--tolerance", "1%"]) == 0
    said = capsys.readouterr().out
    assert "missed by 1 points" in said
    assert "within the tolerance of 1 points" in said
    (found,) = verdicts(capsys, command[:-2], "sqnr >= 5")
    near = found["measured"] + 2
    (found,) = verdicts(capsys, [*command[:-2], "--tolerance", "sqnr=2.5dB"], f"sqnr >= {near}")
    assert (found["passed"], found["tolerance"], found["margin"]) == (True, 2.5, pytest.approx(-2))
    for wrong, reason in (
        ("0.1", "needs a metric, such as sqnr=0.1dB"),
        ("top1=0.1", "top1 takes points; write top1=0.1%"),
        ("sqnr=1%", "the unit '%' does not fit"),
        ("much", "write points such as 0.1%"),
    ):
        assert reason in refused(capsys, [*command, "--tolerance", wrong])


def test_a_tolerance_is_of_what_a_gate_judges(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes are no slack of a ratio, nor points of a metric of a share of it."""
    command = classifiers(changed=8)
    ratio = [*command, "--gate", "size ratio >= 1.05"]
    assert main([*ratio, "--tolerance", "size=0.01x"]) == 3
    assert main([*ratio, "--tolerance", "size=0.2x"]) == 0
    assert "within the tolerance of 0.2x" in capsys.readouterr().out
    assert refused(capsys, [*ratio, "--tolerance", "size=1MB"]).endswith(
        "--tolerance size=1MB: gate 'size ratio >= 1.05' is judged as a ratio; write size=0.1x"
    )
    assert main([*ratio, "--gate", "size <= 1kB", "--tolerance", "size=1MB"]) == 3
    relative = [*command, "--gate", "top1 drop <= 14% relative"]
    assert main([*relative, "--tolerance", "1%"]) == 0
    for tolerance, reason in (
        ("top1=5%", "is judged as a share of what the original has; write a tolerance for all shares"),
        ("topp1=5", "there is no metric 'topp1'; did you mean 'top1'?"),
        ("top1=5x", "top1 takes points; write top1=5%"),
    ):
        assert reason in refused(capsys, [*relative, "--tolerance", tolerance])
    assert "gate 'size <= 1 MB' is judged by size itself; write size=1B" in refused(
        capsys, [*command, "--gate", "size <= 1MB", "--tolerance", "size=1x"]
    )


LOADER = """
import numpy as np

def boxes(n=3):
    for number in range(10):
        x = np.zeros((n, 5, 6), np.float32)
        x[..., :2], x[..., 2:4] = 10 * np.arange(5)[:, None], 10 * np.arange(5)[:, None] + 8
        x[..., 4], x[..., 5] = np.linspace(0.9, 0.5, 5), 1
        yield x, [{"boxes": row[: 1 + number % 4, :4], "labels": row[: 1 + number % 4, 5].astype(int)} for row in x]

def decode(outputs):
    return [{"boxes": row[:, :4], "scores": row[:, 4], "labels": row[:, 5].astype(int)} for row in outputs["y"]]

def texts():
    yield np.eye(4, dtype=np.float32)[[[0, 3, 0, 1, 1, 3], [2, 2, 1, 3, 3, 3]]], ["aab", "cb"]
    yield np.eye(4, dtype=np.float32)[[[2, 3, 2, 3, 2, 3]]], ["ccc"]

def dice(answers, labels):
    return [0.5 + 0.01 * len(label["labels"]) for label in labels]
"""


@pytest.fixture
def loader(folder: Path) -> Path:
    (folder / "own.py").write_text(LOADER)
    return folder / "own.py"


def test_boxes(loader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*pair(ROWS, [1, 1, 1.1, 1.1, 1, 1]), "--data", "own.py:boxes"]
    gates = ("map >= 50%", "map drop <= 60%", "map50 drop <= 50%")
    plain = verdicts(capsys, command, *gates)
    processed = verdicts(capsys, [*command, "--postprocess", "own.py:decode"], *gates)
    assert plain == processed
    assert 0.1 < plain[1]["measured"] < 0.5
    assert plain[1]["interval"]["low"] <= plain[1]["measured"] <= plain[1]["interval"]["high"]
    assert plain[1]["interval"]["samples"] == 30


def test_texts_by_a_file_of_symbols(loader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("symbols.txt").write_text("a\nb\nc\n<blank>\n")
    command = [*pair(PLACES, [1, 1, -1, 1]), "--data", "own.py:texts", "--symbols", "symbols.txt"]
    wer, cer, rise = verdicts(capsys, command, "wer <= 70%", "cer <= 1%", "cer rise <= 60%")
    assert (wer["passed"], wer["measured"]) == (True, pytest.approx(2 / 3))
    assert not cer["passed"]
    assert rise["measured"] == cer["measured"]
    turned = "(float[n,6,4] x) => (float[6,n,4] y) { z = Mul(x, s) y = Transpose<perm = [1, 0, 2]>(z) }"
    Path("own.py").write_text(
        LOADER.replace("[[[0, 3, 0", "[6 * [[2] * 6]], 6 * ['c']\n    yield np.eye(4)[[[0, 3, 0")
    )
    again = [*pair(turned, [1, 1, 1, 1]), "--data", "own.py:texts", "--symbols", "symbols.txt"]
    assert main([*again, "--gate", "cer <= 0%"]) == 0  # six samples of six places, too
    assert "'wer drop' cannot be judged; write 'wer' or 'wer rise'" in refused(
        capsys, [*command, "--gate", "wer drop <= 1%"]
    )


def test_segmentation_of_an_archive(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = random(9, 3, 4, 4)
    np.savez("data.npz", x=x, labels=x.argmax(1))
    command = [*pair(MASKS, np.float32([1, 1, 1.5]).reshape(3, 1, 1)), "--data", "data.npz"]
    (drop,) = verdicts(capsys, command, "miou drop <= 50%")
    assert 0.05 < drop["measured"] < 0.5
    assert "but there are 9 samples; wanted is [9]" in refused(capsys, [*command, "--gate", "top1 >= 1%"])


def test_a_metric_of_ones_own(loader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*pair(ROWS, 1), "--data", "own.py:boxes", "--metric", "dice=own.py:dice"]
    found = verdicts(capsys, command, "dice >= 0.5", "dice drop <= 0", "dice <= 0.4")
    assert [one["passed"] for one in found] == [True, True, False]
    assert found[0]["interval"]["method"].startswith("bootstrap of 1,000")
    gate = ["--gate", "size <= 1 MB"]
    for wrong, reason in (
        ("dice", "write NAME=FILE.py:FUNCTION"),
        ("top1=own.py:dice", "there is a metric of that name"),
        ("Dice=own.py:dice", "a name is of small letters"),
        ("d=own.py:duce", "has no function 'duce'; did you mean 'dice'?"),
        ("d=own.txt:dice", "name a function, such as"),
    ):
        assert reason in refused(capsys, [*command, "--metric", wrong, *gate])
    assert "a function of your own is --metric" in refused(capsys, [*pair(ROWS, 1), "--gate", "qqqq >= 1"])
    assert "no gate asks for a metric of answers" in refused(
        capsys, [*pair(ROWS, 1), "--postprocess", "own.py:decode", *gate]
    )
    assert "no gate asks for wer or cer" in refused(capsys, [*pair(ROWS, 1), "--symbols", "s.txt", *gate])


def test_the_twin_in_python_takes_functions_of_this_process(folder: Path) -> None:
    pair(PASSED_ON, 1)
    x = random(30, 4)
    found = onnx_lathe.gate(
        "base.onnx",
        "candidate.onnx",
        ["mine >= 3", "sqnr >= 20"],
        data={"x": x, "labels": list(range(30))},
        metrics={"mine": lambda answers, labels: [3.0 + label / 30 for label in labels]},
        confidence=0.9,
        tolerance="sqnr=1dB",
    )
    assert found.passed
    assert len(found) == 2
    assert found[0].measured == pytest.approx(3 + 29 / 60)
    assert found.samples == 30
    assert "ONNX Runtime" in found.kernels
    with pytest.raises(onnx_lathe.UsageError, match="--confidence 2"):
        onnx_lathe.gate("base.onnx", "candidate.onnx", "size <= 1 MB", confidence=2)


def test_memory_is_what_a_process_grows_by(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "(float[n,2000] x) => (float[n,2000] y) { y = MatMul(x, w) }"
    onnx.save(build(text, w=random(2000, 2000)), "base.onnx")
    onnx.save(build(text, w=np.zeros((2000, 2000), np.float32)), "same.onnx")
    small = "(float[n,2000] x) => (float[n,2000] y) { a = MatMul(x, v) y = MatMul(a, w) }"
    onnx.save(build(small, v=random(2000, 20), w=random(20, 2000)), "small.onnx")
    (large,) = verdicts(capsys, ["gate", "base.onnx", "same.onnx", "--quiet"], "memory <= 200 MB")
    assert 14e6 < large["measured"] < 120e6
    (ratio,) = verdicts(capsys, ["gate", "base.onnx", "small.onnx", "--quiet"], "memory ratio >= 2")
    assert ratio["passed"]


def test_memory_that_cannot_be_measured_is_no_pass(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*pair(PASSED_ON, 1), "--gate", "memory <= 1 GB"]
    monkeypatch.setattr(memory, "unmeasured", lambda: "the peak of a process is not read here")
    assert refused(capsys, command).endswith("cannot be judged: the peak of a process is not read here")


@pytest.mark.parametrize(
    "text", ["float[n,5] y) { y = MatMul(x, w)", "float[n,4] y) { z = Mul(x, s) y = Log(z)"]
)
def test_a_candidate_without_a_comparable_output_fails_its_gates(
    text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*classifiers(changed=0), "--junit", "gates.xml", "--markdown", "gates.md"]
    onnx.save(build(f"(float[n,4] x) => ({text} }}", w=random(4, 5), s=np.float32(-1)), "candidate.onnx")
    assert main([*command, "--gate", "sqnr >= 10", "--gate", "size <= 1MB"]) == 3
    said = capsys.readouterr().out
    assert (
        "gate FAILED  gate 'sqnr >= 10' failed: sqnr[y] could not be measured, since the output's shape, or its NaN"
        in said
    )
    assert "gate passed  size" in said
    assert 'failures="1"' in Path("gates.xml").read_text(encoding="utf-8")
    assert "1 of 2 gates failed" in Path("gates.md").read_text(encoding="utf-8")


def test_latency_is_judged_by_an_interval_of_its_rounds(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = classifiers(changed=0)
    assert main([*command, "--gate", "latency <= 10000 ms", "--confidence", "95%"]) == 0
    assert "judged by its upper end" in capsys.readouterr().out
    (found,) = verdicts(capsys, command, "latency ratio >= 0.001")
    assert found["interval"]["low"] <= found["measured"] <= found["interval"]["high"]
    assert found["interval"]["samples"] >= 10


def test_what_is_not_known_by_samples_is_not_judged_by_an_interval(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An output whose first axis is not that of samples."""
    text = "(float[n,4] x) => (float[4,m] y) { z = Mul(x, s) y = Transpose(z) }"
    np.savez("data.npz", x=random(30, 4))
    command = [*pair(text, 1.01), "--data", "data.npz", "--gate", "sqnr >= 20"]
    assert main(command) == 0
    assert "interval" not in capsys.readouterr().out
    assert main([*command, "--confidence", "95%"]) == 3
    assert "has no interval here, since it is not known sample by sample" in capsys.readouterr().out


@pytest.mark.parametrize("samples", [30, 4])
def test_an_axis_of_samples_that_is_not_the_first(
    samples: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model says which it is, also where another is as long."""
    text = "(float[n,4] x) => (float[4,n] y) { z = Mul(x, s) y = Transpose(z) }"
    x = random(samples, 4)
    x[0] = 0
    np.savez("data.npz", x=x)
    found = verdicts(
        capsys, [*pair(text, [1, 1, 1, 1.5]), "--data", "data.npz"], "sqnr >= 5", "cosine >= 0.5"
    )
    assert [one["interval"]["samples"] for one in found] == [samples, samples]
    scaled = x[1:] * np.float32([1, 1, 1, 1.5])
    lengths = np.linalg.norm(x[1:], axis=1) * np.linalg.norm(scaled, axis=1)
    expected = np.append((x[1:] * scaled).sum(1) / lengths, 1).mean()
    assert found[1]["measured"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("text", ["40%", "100%", "1", "95 percent", "nan"])
def test_a_confidence_that_is_none(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["gate", "a.onnx", "b.onnx", "--gate", "size <= 1 MB", "--confidence", text]
    assert f"--confidence {text}: give 50% to 99.9%" in refused(capsys, command)


OWN = """
import numpy as np
calls = []

def only(answers, labels):
    calls.append(1)
    if len(set(labels)) < 4 or len(labels) != len(set(map(bytes, answers["y"]))):
        raise ValueError("needs each sample once")
    assert len(calls) < 5
    return 0.75

def odd():
    yield np.eye(4, dtype=np.float32)[:3], [1, [1, 2], 2]

def wrong():
    yield np.eye(4, dtype=np.float32)[:3], [1, 2, 7]
"""


def test_a_metric_that_takes_no_resample(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is called once for each model, and has no interval."""
    (folder / "own.py").write_text(OWN)
    np.savez("data.npz", x=random(40, 4), labels=np.arange(40) % 4)
    command = [*pair(PASSED_ON, 1), "--data", "data.npz", "--metric", "m=own.py:only", "--gate", "m >= 0.5"]
    assert main(command) == 0
    assert "interval" not in capsys.readouterr().out
    assert main([*command, "--confidence", "95%"]) == 3
    said = capsys.readouterr().out
    assert "m has no interval here, since it cannot be computed of resamples" in said
    assert "own.py:only: ValueError in line 8: needs each sample once" in said


def test_labels_that_do_not_fit_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "own.py").write_text(OWN)
    command = [*pair(PASSED_ON, 1), "--gate", "f1 >= 1%", "--data"]
    assert "a label is list [1, 2], wanted is a class number" in refused(capsys, [*command, "own.py:odd"])
    said = refused(capsys, [*command, "own.py:wrong"])
    assert "own.py:wrong: batch 1: the labels holds 7, wanted are class numbers 0 to 3" in said


def test_a_slice_has_an_interval(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "(float[n,4] x) => (float[n,8] y) { a = Mul(x, s) b = Mul(x, l) y = Concat<axis = 1>(a, b) }"
    for name, scale in (("base", 1), ("candidate", 1.1)):
        onnx.save(build(text, s=np.float32(scale), l=np.float32(1000)), f"{name}.onnx")
    np.savez("data.npz", x=random(40, 4))
    command = ["gate", "base.onnx", "candidate.onnx", "--quiet", "--data", "data.npz", "--confidence", "95%"]
    assert main([*command, "--gate", "sqnr[y][0-3] >= 19"]) == 0
    assert main([*command, "--gate", "sqnr[y][0-3] >= 21"]) == 3


def test_few_samples_that_decide_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "own.py").write_text(
        "def share(answers, labels):\n    return [0.5 * (number > 0) + 0.2 for number in range(len(labels))]\n"
    )
    np.savez("data.npz", x=random(40, 4), labels=np.arange(40) % 4)
    command = [*pair(PASSED_ON, 1), "--data", "data.npz", "--metric", "m=own.py:share"]
    (found,) = verdicts(capsys, command, "m >= 0.5")
    assert found["interval"]["widened"] > 0
    assert "few of the 40 samples decide it" in found["message"]
