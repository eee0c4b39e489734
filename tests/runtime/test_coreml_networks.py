"""Whole networks as Core ML's packages: read back, and evaluated beside ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe import rewrite
from onnx_lathe.runtime.targets.coreml import writing
from onnx_lathe.runtime.targets.coreml.form import Form
from tests.support.coreml import agree, converted, kinds
from tests.support.house import ROOT

pytest.importorskip("coremltools")

MODELS = ("lenet300-mnist", "lenet5-mnist", "resnet20-cifar10")


def own(name: str) -> onnx.ModelProto:
    return onnx.load(ROOT / "models" / name / "model.onnx")


@pytest.mark.parametrize("name", MODELS)
def test_the_repositorys_networks(name: str) -> None:
    """At two sizes of the batch."""
    written = agree(own(name), package=True)
    assert written.inputs[0].shape[0] is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_networks_that_others_made(name: str) -> None:
    path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    agree(onnx.load(path), package=True)


PASSES = {
    "codebook": ("fold,codebook(bits=4)", 0.14, "constexpr_lut_to_dense"),
    "zeros": ("fold,prune(sparsity=0.75)", 0.32, "constexpr_sparse_to_dense"),
}


@pytest.mark.parametrize("name", PASSES)
def test_what_compressed_weights_take_of_floats(name: str, tmp_path: Path) -> None:
    passes, most, kind = PASSES[name]
    model = own("lenet5-mnist")
    compressed = rewrite(model, passes)
    sizes = []
    for number, one in enumerate((model, compressed)):
        package = tmp_path / f"{number}.mlpackage"
        writing.write(converted(one), Form(), package, None, {})
        sizes.append(writing.weight_bytes(package))
    assert sizes[1] <= most * sizes[0]
    assert kind in kinds(agree(compressed, package=True))


@pytest.mark.parametrize("form", [Form("iOS17"), Form("iOS18")], ids=str)
def test_int8_of_a_whole_network(form: Form) -> None:
    """Layers behind a value near the middle between two steps see another one: far closer than a step all the same."""
    images = np.random.default_rng(0).random((16, 1, 28, 28)).astype(np.float32)
    compressed = rewrite(own("lenet5-mnist"), "fold,int8", data={"image": images})
    written = agree(compressed, form=form, feeds={"image": images[:4]}, tolerance=5e-3, package=True)
    assert kinds(written).count("quantize") >= 3
    assert sum(kind.startswith("constexpr_") for kind in kinds(written)) == 4
