"""The Python API: docs/api.md's examples as they stand, silence, refusals, and what an import loads."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.errors import DataError, LatheError, ModelError, PassError, UsageError
from onnx_lathe.passes.core.base import Pass
from tests.support.builders import build, random
from tests.support.models import ROOT

EXAMPLES = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL
)
NETWORK = "(float[N, 8] x) => (float[N, 4] y) { h = MatMul (x, w1)  r = Relu (h)  y = MatMul (r, w2) }"


def network() -> onnx.ModelProto:
    return build(NETWORK, w1=random(8, 16), w2=random(16, 4))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lenet5: Path, small_mnist: Path) -> Path:
    """What docs/api.md says there is, as current directory; few hidden units, so that it packs quickly."""
    fewer = onnx_lathe.rewrite(lenet5, 'prune_channels(sparsity=0.9, layers={"conv*": 0})')
    onnx.save(fewer, tmp_path / "model.onnx")
    with np.load(small_mnist) as arrays:
        np.savez(tmp_path / "data.npz", image=arrays["test/image"], labels=arrays["test/labels"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.slow
def test_every_example_of_the_page_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(EXAMPLES) >= 10
    names: dict[str, object] = {}
    for number, example in enumerate(EXAMPLES):
        exec(compile(example, f"docs/api.md, example {number + 1}", "exec"), names)
    said = capsys.readouterr().out
    assert "done 0" in said
    assert "there is no pass 'prunee'; did you mean 'prune'?" in said
    assert {path.name for path in folder.iterdir()} >= {
        "small.onnx",
        "build",
        "finished",
        "small.lathe",
        "again.onnx",
    }
    assert (folder / "again.onnx").read_bytes() == (folder / "small.onnx").read_bytes()


def test_every_public_name_is_there() -> None:
    for name in onnx_lathe.__all__:
        assert getattr(onnx_lathe, name) is not None
    assert set(onnx_lathe.__all__) <= set(dir(onnx_lathe))
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        _ = onnx_lathe.prune


def test_passes_is_a_package_and_a_function() -> None:
    import onnx_lathe.passes.core.registry as registry

    assert onnx_lathe.passes() == registry.all_passes()
    assert onnx_lathe.passes.core.registry is registry
    assert set(onnx_lathe.targets()) >= {"onnx", "ort", "pack", "tensorrt-rtx"}


def test_an_import_loads_nothing_heavy() -> None:
    code = "import sys, onnx_lathe; print(sorted({'numpy', 'onnx', 'onnxruntime', 'torch', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rewrite_leaves_the_model_as_it_is_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    model = network()
    before = model.SerializeToString()
    after = onnx_lathe.rewrite(model, "prune(sparsity=0.5, min_size=1)")
    assert model.SerializeToString() == before
    values = onnx.numpy_helper.to_array(next(t for t in after.graph.initializer if t.name == "w1"))
    assert np.count_nonzero(values) == values.size // 2
    assert capfd.readouterr() == ("", "")


def test_texts_and_passes_are_the_same() -> None:
    model = network()
    prune = onnx_lathe.passes()["prune"]
    by_text = onnx_lathe.rewrite(model, "fold, prune(sparsity=0.5, min_size=1)")
    by_pass = onnx_lathe.rewrite(model, ["fold", prune(prune.Config(sparsity=0.5, min_size=1))])
    assert by_text.SerializeToString() == by_pass.SerializeToString()


def test_the_order_of_passes_is_checked() -> None:
    with pytest.raises(UsageError, match="pass 'prune' must come before 'codebook'"):
        onnx_lathe.rewrite(network(), ["codebook", "prune"])
    with pytest.raises(UsageError, match="passes are texts or passes, not int"):
        onnx_lathe.rewrite(network(), [3])  # type: ignore[list-item]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(DataError, match="pass 'int8' needs calibration data"):
        onnx_lathe.rewrite(network(), "int8")
    with pytest.raises(
        DataError, match=r"arrays in memory: there is no array 'x' for the model's input.*it has X"
    ):
        onnx_lathe.rewrite(network(), "int8", calibration={"X": random(4, 8)})
    with pytest.raises(DataError, match="arrays in memory: 'z' is no input of the model"):
        onnx_lathe.rewrite(network(), "int8", calibration={"x": random(4, 8), "z": random(4, 8)})
    with pytest.raises(UsageError, match="nothing to do"):
        onnx_lathe.optimize("model.onnx")


def test_a_model_in_memory_is_checked_as_a_file_is() -> None:
    with pytest.raises(ModelError, match="opset 6 is older"):
        onnx_lathe.rewrite(build(NETWORK, 6, w1=random(8, 16), w2=random(16, 4)), "fold")
    model = network()
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(ModelError, match="the data of tensor 'w1' is in another file"):
        onnx_lathe.inspect(model)


def test_a_pass_that_fails_is_named() -> None:
    class Failing(Pass):
        name = "failing"

        def apply(self, graph: object, context: object) -> onnx_lathe.PassReport:
            raise PassError("no luck")

    with pytest.raises(PassError, match="failing: no luck"):
        onnx_lathe.rewrite(network(), Failing())


def test_arrays_and_a_function_calibrate_alike() -> None:
    model, values = network(), random(32, 8)
    by_arrays = onnx_lathe.rewrite(model, "int8", calibration={"x": values})
    by_function = onnx_lathe.rewrite(model, "int8", calibration=lambda: [values[:16], values[16:]])
    assert by_arrays.SerializeToString() == by_function.SerializeToString()


def test_optimize_is_silent_and_can_be_called_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["notebook", "--made-up"])
    model, data = network(), {"x": random(64, 8)}
    arguments = {"data": data, "out": tmp_path / "out", "latency": False}
    passed = onnx_lathe.optimize(model, "fold, int8", gates="sqnr >= 5", **arguments)
    failed = onnx_lathe.optimize(model, "fold, int8", gates=["sqnr >= 500"], **arguments)
    assert (passed.exit_code, passed.outcome) == (0, "done")
    assert (failed.exit_code, failed.outcome) == (3, "gate failed")
    assert passed.command == []
    assert not (tmp_path / "out" / "model.onnx").exists(), "nothing is left of the run that passed"
    assert capfd.readouterr() == ("", "")
    heard: list[str] = []
    onnx_lathe.optimize(model, "fold", progress=heard.append, force=True, **arguments)
    assert "1/1 fold" in heard


def test_pass_objects_in_a_whole_run(tmp_path: Path) -> None:
    prune = onnx_lathe.passes()["prune"]
    record = onnx_lathe.optimize(
        network(), prune(prune.Config(sparsity=0.5, min_size=1)), out=tmp_path, latency=False
    )
    assert record.steps[0].options["sparsity"] == 0.5
    assert (tmp_path / "model.onnx").exists()


def test_a_function_of_this_process_cannot_be_handed_to_workers(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(LatheError, match="cannot feed workers of a launch"):
        onnx_lathe.optimize(
            network(),
            "retrain(epochs=1)",
            train=lambda: [random(8, 8)],
            launch="--nproc-per-node=1",
            out=tmp_path,
            latency=False,
        )


def test_a_module_of_another_model_is_refused() -> None:
    pytest.importorskip("torch")
    module = onnx_lathe.to_torch(network())
    other = build("(float[N, 8] x) => (float[N, 4] y) { y = MatMul (x, other) }", other=random(8, 4))
    with pytest.raises(
        UsageError, match="the module is of another model: 'w1' is no initializer of this one"
    ):
        onnx_lathe.from_torch(module, other)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("prune", {"scope": "globl"}, r"prune\(scope=...\) must be one of layer, global, not 'globl'"),
        ("prune", {"sparsity": -1}, r"prune\(sparsity=...\) must be 0.0 to 1.0, not -1"),
        ("prune_nm", {"n": 0}, r"prune_nm\(n=...\) must be at least 1, not 0"),
        ("prune_channels", {"keep_multiple": 0}, r"keep_multiple=...\) must be at least 1, not 0"),
        ("codebook", {"init": "rndom"}, r"codebook\(init=...\) must be one of"),
        ("retrain", {"epochs": -1}, r"retrain\(epochs=...\) must be at least 1, not -1"),
        (
            "prune",
            {"training": onnx_lathe.TrainingOptions(optimizer="adamm")},
            r"prune\(training={optimizer: ...}\) must be one of adamw, sgd, not 'adamm'",
        ),
    ],
)
def test_options_made_in_python_are_checked_too(name: str, options: dict[str, object], said: str) -> None:
    pass_class = onnx_lathe.passes()[name]
    with pytest.raises(UsageError, match=said):
        onnx_lathe.rewrite(network(), pass_class(pass_class.Config(**options)))


def test_the_options_of_another_pass_are_refused() -> None:
    int4, fold = onnx_lathe.passes()["int4"], onnx_lathe.passes()["fold"]
    with pytest.raises(UsageError, match=r"pass 'int4' takes its own Config, not Fold\.Config"):
        onnx_lathe.rewrite(network(), int4(fold.Config()))
    with pytest.raises(UsageError, match=r"prune: training takes TrainingOptions\(...\)"):
        onnx_lathe.passes()["prune"].Config(training={"epochs": 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: onnx_lathe.rewrite(None, "fold"), "model takes a path, not NoneType"),
        (lambda: onnx_lathe.rewrite(network(), 5), "passes are texts or passes, not int"),
        (lambda: onnx_lathe.rewrite(network(), onnx_lathe.passes()["fold"]), r"not type; write Fold\(\)"),
        (lambda: onnx_lathe.rewrite(network(), "int8", data=random(4, 8)), "data is a text, arrays by name"),
        (lambda: onnx_lathe.rewrite(network(), "int8", data={"x": [[1], [2, 3]]}), "arrays in memory: "),
        (lambda: onnx_lathe.rewrite(network(), "fold", preprocess=5), "preprocess takes a text, not int"),
        (lambda: onnx_lathe.rewrite(network(), "fold", seed=1.5), "seed takes a whole number, not 1.5"),
        (
            lambda: onnx_lathe.rewrite(network(), "fold", targets="ort(foo=1)"),
            "target 'ort' has no option 'foo'",
        ),
        (
            lambda: onnx_lathe.optimize(network(), "fold", gates=5),
            "gates takes a text or a list of texts, not 5",
        ),
        (lambda: onnx_lathe.optimize(network(), "fold", out=5), "out takes a path, not int"),
        (lambda: onnx_lathe.gate("a.onnx", "b.onnx", []), "no gate is named"),
        (lambda: onnx_lathe.check("a.onnx", ""), "no target is named"),
        (lambda: onnx_lathe.unpack(None), "file takes a path, not NoneType"),
    ],
)
def test_what_is_of_the_wrong_type_is_one_line(call: Callable[[], object], said: str) -> None:
    with pytest.raises(LatheError, match=said):
        call()


def test_a_model_that_nothing_changed_is_a_copy() -> None:
    model = network()
    after = onnx_lathe.rewrite(model, "fold")
    assert after is not model
    assert after.SerializeToString() == model.SerializeToString()


def test_a_pass_of_somebody_else_s_is_not_a_defect_of_lathe() -> None:
    class Broken(Pass):
        name = "broken"

        def apply(self, graph: object, context: object) -> onnx_lathe.PassReport:
            return {}["key"]

    class Silent(Pass):
        name = "silent"

        def apply(self, graph: object, context: object) -> onnx_lathe.PassReport:
            return None  # type: ignore[return-value]

    with pytest.raises(PassError, match=r"broken: the pass of tests\.\S+ failed: KeyError: 'key'"):
        onnx_lathe.rewrite(network(), Broken())
    with pytest.raises(
        PassError, match=r"silent: the pass of tests\.\S+ returned NoneType, not a PassReport"
    ):
        onnx_lathe.rewrite(network(), Silent())


def test_warnings_reach_the_caller() -> None:
    heard: list[str] = []
    onnx_lathe.rewrite(network(), "int8", calibration={"x": random(1, 8)}, progress=heard.append)
    assert any(text.startswith("warning: 1 calibration sample") for text in heard)


def test_other_data_of_a_function_is_no_resume(tmp_path: Path) -> None:
    def made(level: float) -> Callable[[], list[np.ndarray]]:
        return lambda: [np.full((32, 8), level, np.float32)]

    model, arguments = network(), {"out": tmp_path, "latency": False}
    onnx_lathe.optimize(model, "int8", calibration=made(1), **arguments)
    with pytest.raises(UsageError, match="cannot resume, the calibration data changed since"):
        onnx_lathe.optimize(model, "int8", calibration=made(8), resume=True, **arguments)
    record = onnx_lathe.optimize(model, "int8", calibration=made(1), resume=True, **arguments)
    assert record.model["path"] == "model in memory"


def test_a_star_leaves_pythons_open_as_it_is() -> None:
    names: dict[str, object] = {}
    exec("from onnx_lathe import *", names)
    assert "open" not in names
    assert callable(onnx_lathe.open)
