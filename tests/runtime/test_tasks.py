"""Metrics against labels, on values known by hand or of other implementations."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_lathe.errors import DataError, UsageError
from onnx_lathe.runtime.running.tasks.base import Answer, Task
from onnx_lathe.runtime.running.tasks.classes import F1
from onnx_lathe.runtime.running.tasks.custom import Custom, Postprocess
from onnx_lathe.runtime.running.tasks.samples import Measured
from onnx_lathe.runtime.running.tasks.segmentation import MeanIoU
from onnx_lathe.runtime.running.tasks.texts import ErrorRate, Symbols, read_symbols


def measured(task: Task, labels: Sequence[Any] | None, *answers: Answer) -> Measured:
    """The metric of these answers, whose labels lie one behind the other."""
    collector, at = task.start(), 0
    for answer in answers:
        collector.add(answer, None if labels is None else labels[at : at + answer.count])
        at += answer.count
    return collector.measured()[task.name]


def whole(task: Task, labels: Sequence[Any] | None, outputs: dict[str, np.ndarray], count: int) -> float:
    return measured(task, labels, Answer(outputs, count)).whole()


SCORES = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
CLASSES = list(np.random.default_rng(1).integers(0, 4, 60))


def test_f1_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    found = measured(F1("f1"), CLASSES, Answer({"y": SCORES[:25]}, 25), Answer({"y": SCORES[25:]}, 35))
    assert found.whole() == pytest.approx(metrics.f1_score(CLASSES, SCORES.argmax(1), average="macro"))
    two = [int(label > 1) for label in CLASSES]
    binary = whole(F1("f1_binary"), two, {"y": SCORES[:, :2]}, 60)
    assert binary == pytest.approx(metrics.f1_score(two, SCORES[:, :2].argmax(1)))
    few = np.arange(60) // 20
    rows = np.flatnonzero(few)
    counts = (few > 0).astype(int)[None]
    again = metrics.f1_score(np.array(CLASSES)[rows], SCORES.argmax(1)[rows], average="macro")
    assert found.at(counts)[0] == pytest.approx(again)


def test_f1_of_a_class_that_the_model_says_itself() -> None:
    classes = SCORES.argmax(1)
    assert whole(F1("f1"), CLASSES, {"label": classes}, 60) == whole(F1("f1"), CLASSES, {"y": SCORES}, 60)
    both = {"label": classes, "probabilities": SCORES}
    assert whole(F1("f1"), CLASSES, both, 60) == whole(F1("f1"), CLASSES, {"y": SCORES}, 60)


def test_f1_of_two_classes_refuses_a_third() -> None:
    with pytest.raises(DataError, match="class 3 occurs; gate 'f1'"):
        measured(F1("f1_binary"), CLASSES, Answer({"y": SCORES}, 60))


MASKS = [np.array([[0, 0, 1], [1, 255, 2]]), np.array([[1, 1, 1], [0, 0, -1]])]
FOUND = np.array([[[0, 1, 1], [1, 2, 0]], [[1, 1, 0], [0, 0, 2]]])
"""IoU 0: 3 of 6; 1: 4 of 6; 2: 0 of 1."""


@pytest.mark.parametrize("form", ["classes", "one channel", "scores", "scores last", "masks of one channel"])
def test_miou_over_all_pixels_that_count(form: str) -> None:
    hot = np.eye(3, dtype=np.float32)[FOUND]
    outputs = {
        "classes": FOUND,
        "one channel": FOUND[:, None],
        "scores": hot.transpose(0, 3, 1, 2),
        "scores last": hot,
        "masks of one channel": FOUND,
    }[form]
    masks = [mask[None] for mask in MASKS] if form == "masks of one channel" else MASKS
    found = measured(MeanIoU(), masks, Answer({"y": outputs}, 2))
    assert found.whole() == pytest.approx((3 / 6 + 4 / 6 + 0) / 3)
    assert found.at(np.array([[2, 0]]))[0] == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)  # the first alone


def test_miou_of_other_sizes_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"gives \[1, 3\] pixels where the label has \[2, 3\]; scale"):
        measured(MeanIoU(), MASKS, Answer({"y": FOUND[:, :1]}, 2))


def test_texts_of_a_model_that_writes_them() -> None:
    labels = ["the quick fox", "jumps", ""]
    given = np.array([["the quick box"], ["jumps high"], ["x"]], dtype=object)
    assert whole(ErrorRate("wer", None), labels, {"y": given}, 3) == pytest.approx(3 / 4)
    assert whole(ErrorRate("cer", None), labels, {"y": given}, 3) == pytest.approx((1 + 5 + 1) / 18)


def ctc(texts: Sequence[str], symbols: str, blank: int) -> np.ndarray:
    """Scores [samples, places, symbols] whose best path is one text each, every symbol twice."""
    rows = []
    for text in texts:
        path = [place for symbol in text for place in (symbols.index(symbol),) * 2 + (blank,)]
        rows.append(path + [blank] * (12 - len(path)))
    return np.eye(len(symbols) + 1, dtype=np.float32)[np.array(rows)]


def test_scores_over_symbols_are_read_by_their_best_path() -> None:
    texts = ["aab", "b a"]
    scores = ctc(texts, "ab ", 3)
    last = Symbols(("a", "b", " ", "<blank>"), 3)
    assert whole(ErrorRate("cer", last), texts, {"y": scores}, 2) == 0
    moved = scores[..., [3, 0, 1, 2]]  # the blank first, and no line for it
    assert whole(ErrorRate("cer", Symbols(("a", "b", " "), None)), texts, {"y": moved}, 2) == 0
    assert whole(ErrorRate("cer", last), texts, {"y": scores.transpose(1, 0, 2)}, 2) == 0
    assert whole(ErrorRate("cer", last), ["aaa", "b a"], {"y": scores}, 2) == pytest.approx(1 / 6)
    one = Answer({"y": scores[0]}, 1, alone=True)
    assert measured(ErrorRate("cer", last), ["aab"], one).whole() == 0


def test_a_file_of_symbols(tmp_path: Path) -> None:
    path = tmp_path / "symbols.txt"
    path.write_text("a\r\n \n<space>\n<blank>\n", encoding="utf-8")
    assert read_symbols(path) == Symbols(("a", " ", " ", "<blank>"), 3)
    path.write_text("a\nb\n")
    assert read_symbols(path).places() == (3,)
    for text, said in (("", "is empty"), ("<blank>\n<blank>\n", "has <blank> twice")):
        path.write_text(text)
        with pytest.raises(UsageError, match=said):
            read_symbols(path)
    with pytest.raises(UsageError, match=r"nowhere.txt: cannot be read \(No such file"):
        read_symbols(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    "task, labels, outputs, said",
    [
        (F1("f1"), None, {"y": SCORES}, "metric 'f1' needs labels, and the data has none; one per sample: its class"),
        (F1("f1"), ["cat"] * 60, {"y": SCORES}, "a label is str cat, wanted is a class number"),
        (F1("f1"), CLASSES, {"y": SCORES[:, :1]}, r"no output is \[samples, classes\] or a class per sample: 'y' \[60, 1\]"),
        (F1("f1"), CLASSES, {"y": SCORES, "z": -SCORES}, "several outputs may be"),
        (F1("f1"), [[1], [1, 2]], {"y": SCORES[:2]}, r"a label is list \[1, 2\], wanted is a class number"),
        (F1("f1"), [0, 2**70], {"y": SCORES[:2]}, "a label is int 118.*, wanted is a class number"),
        (MeanIoU(), [[[1], [1, 2]]], {"y": SCORES[:1]}, "the label of a sample has rows of several lengths"),
        (MeanIoU(), CLASSES, {"y": SCORES}, r"the label of a sample is int64 \[\]; wanted is the class of each pixel"),
        (MeanIoU(), MASKS * 30, {"y": SCORES}, "no output is .samples, classes, height, width"),
        (ErrorRate("wer", None), CLASSES, {"y": SCORES}, "a label is int64, wanted is a text"),
        (ErrorRate("wer", None), ["a"] * 60, {"y": SCORES}, "--symbols FILE names the symbols of CTC's scores"),
        (ErrorRate("cer", Symbols(("a",), None)), ["a"] * 60, {"y": SCORES}, r"\[samples, places, 2\], scores over"),
        (ErrorRate("wer", None), [""], {"y": np.array(["x"])}, "all labels are empty texts"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    task: Task, labels: Any, outputs: dict[str, np.ndarray], said: str
) -> None:
    with pytest.raises(DataError, match=said) as refused:
        measured(task, labels, Answer(outputs, len(next(iter(outputs.values())))))
    assert "\n" not in str(refused.value)


CODE = """
import numpy as np

def decode(outputs):
    return [row.argmax() for row in outputs["y"]]

def with_inputs(outputs, inputs):
    return [(row, given) for row, given in zip(outputs["y"], inputs["x"])]

def too_few(outputs):
    return [1]

def share(answers, labels):
    return np.mean(np.array(answers) == np.array(labels))

def each(answers, labels):
    return np.array(answers) == np.array(labels)

def spread(answers, labels):
    assert labels is None
    return answers["y"].max(0).sum()

def broken(answers, labels):
    return labels[0].nothing

def odd(answers, labels):
    return np.zeros((2, 2))

def empty(answers, labels):
    return float("nan")
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(CODE)
    return tmp_path / "own.py"


def answer(code: Path) -> Answer:
    processed = Postprocess(f"{code}:decode")({"y": SCORES}, {}, 60)
    return Answer({"y": SCORES}, 60, processed=processed)


def test_a_metric_of_ones_own(code: Path) -> None:
    expected = float(np.mean(SCORES.argmax(1) == np.array(CLASSES)))
    one = measured(Custom("mine", f"{code}:share"), CLASSES, answer(code))
    each = measured(Custom("mine", f"{code}:each"), CLASSES, answer(code))
    assert one.whole() == pytest.approx(expected)
    assert each.whole() == pytest.approx(expected)
    counts = np.random.default_rng(0).multinomial(60, [1 / 60] * 60, size=3)
    np.testing.assert_allclose(one.at(counts), each.at(counts))
    spread = measured(Custom("mine", f"{code}:spread"), None, Answer({"y": SCORES, "n": SCORES[:7]}, 60))
    assert spread.whole() == pytest.approx(SCORES.max(0).sum())


def test_postprocess_may_read_the_inputs(code: Path) -> None:
    made = Postprocess(f"{code}:with_inputs")({"y": SCORES[:2]}, {"x": np.arange(2)}, 2)
    assert [given for _, given in made] == [0, 1]


@pytest.mark.parametrize(
    "function, said",
    [
        ("broken", r"own.py:broken: AttributeError in line 24: "),
        ("odd", r"own.py:odd gives \[2, 2\] for 60 samples; return a number, or one per sample"),
        ("empty", "own.py:empty gives a number that is not finite"),
        ("brocken", "has no function 'brocken'; did you mean 'broken'?"),
    ],
)
def test_mistakes_in_a_metric_are_one_line(code: Path, function: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as refused:
        measured(Custom("mine", f"{code}:{function}"), CLASSES, answer(code))
    assert "\n" not in str(refused.value)


def test_mistakes_in_a_postprocess_are_one_line(code: Path) -> None:
    with pytest.raises(
        DataError, match=r"own.py:too_few gives 1 answers for 60 samples; return a list of one per"
    ):
        Postprocess(f"{code}:too_few")({"y": SCORES}, {}, 60)
    with pytest.raises(UsageError, match=r"--postprocess own.py: name a function, such as own.py:function"):
        Postprocess("own.py")


@pytest.mark.parametrize("package, task", [("jiwer", ErrorRate("wer", None))])
def test_a_package_that_is_missing_is_named(
    package: str, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r'need jiwer: pip install "onnx-lathe\[metrics\]"'):
        measured(task, ["a"], Answer({"y": np.array(["a"])}, 1))


LOST = np.full((60, 4), np.nan, np.float32)


def test_what_is_not_a_number_is_no_answer() -> None:
    """`argmax` would choose class 0, which most labels may be."""
    zeros = [0] * 60
    assert whole(F1("f1"), zeros, {"y": LOST}, 60) == 0
    half = np.where(np.arange(60)[:, None] < 30, LOST, np.float32([1, 0, 0, 0]))
    assert whole(F1("f1"), zeros, {"y": half}, 60) == pytest.approx(2 / 3)
    masks = [np.zeros((2, 3), int), np.ones((2, 3), int)]
    scores = np.stack([np.full((2, 2, 3), np.nan), np.eye(2)[1][:, None, None] * np.ones((2, 2, 3))])
    assert whole(MeanIoU(), masks, {"y": scores.astype(np.float32)}, 2) == 0.5
    symbols = Symbols(("a", "<blank>"), 1)
    lost = np.full((1, 5, 2), np.nan, np.float32)
    assert whole(ErrorRate("cer", symbols), ["aaa"], {"y": lost}, 1) == 1
    lost[0, 0] = 1, 0
    assert whole(ErrorRate("cer", symbols), ["a"], {"y": lost}, 1) == 1  # one that is not there


def test_one_sample_may_come_with_its_axis_or_without() -> None:
    for given in (SCORES[:1], SCORES[0]):
        assert measured(F1("f1"), [SCORES[0].argmax()], Answer({"y": given}, 1, alone=True)).whole() == 1
    scores = np.eye(3, dtype=np.float32)[FOUND[:1]].transpose(0, 3, 1, 2)
    for given in (scores, scores[0], FOUND[:1], FOUND[0]):
        assert measured(MeanIoU(), [FOUND[0]], Answer({"y": given}, 1, alone=True)).whole() == 1


def test_class_numbers_may_be_of_any_size() -> None:
    assert whole(F1("f1"), [0, 10**15], {"y": np.array([0, 10**15])}, 2) == 1


def test_a_metric_of_ones_and_zeros_is_a_share(code: Path) -> None:
    assert measured(Custom("mine", f"{code}:each"), CLASSES, answer(code)).hits is not None


def test_a_resample_that_a_metric_cannot_take_is_one_line(code: Path) -> None:
    code.write_text("def few(answers, labels):\n    return 1.0 if len(set(labels)) == 4 else [1.0, 2.0]\n")
    found = measured(Custom("mine", f"{code}:few"), CLASSES, Answer({"y": SCORES}, 60))
    assert found.costly
    with pytest.raises(DataError, match=r"own.py:few gives \[2\] for a resample, not a number"):
        found.at(np.array([[60] + [0] * 59]))
