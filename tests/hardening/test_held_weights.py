"""Weights that stay in files: the same models come out, and no command holds all weights in memory."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe import held
from onnx_lathe.errors import ContractError, LatheError, ModelError
from onnx_lathe.optimizer import step
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.model import import_model
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.pieces import pieces
from onnx_lathe.runtime.pack.files import pack_file, packed_file, unpack_file

PASSES = {
    "fold": {},
    "prune": {"sparsity": 0.5},
    "codebook": {"bits": 4},
    "int8": {"activations": False},
    "int4": {},
}


def chain(layers: int, side: int) -> onnx.ModelProto:
    rng, nodes, top = np.random.default_rng(0), [], "x"
    tensors = []
    for number in range(layers):
        values = rng.standard_normal((side, side), np.float32) / np.float32(side**0.5)
        tensors.append(numpy_helper.from_array(values, f"w{number}"))
        nodes.append(helper.make_node("MatMul", [top, f"w{number}"], [f"y{number}"], f"layer{number}"))
        top = f"y{number}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, side]) for name in ("x", top)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def apart(model: onnx.ModelProto, path: Path) -> Path:
    """The model with its weights in another file."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(copy, path, save_as_external_data=True, location=path.name + ".data", size_threshold=1024)
    return path


@pytest.fixture(scope="module")
def small() -> onnx.ModelProto:
    """Weights of 1 MB each, the least that is held."""
    return chain(2, 512)


def test_a_big_tensor_of_external_data_is_held_and_a_small_one_read(small: onnx.ModelProto, tmp_path: Path):
    file = apart(small, tmp_path / "model.onnx")
    small_too = apart(chain(1, 64), tmp_path / "small.onnx")
    with held.area(tmp_path):
        loaded = model_file.load(file)
        assert all(map(held.is_held, loaded.graph.initializer))
        graph = import_model(loaded)
        for tensor in small.graph.initializer:
            assert np.array_equal(read(graph.tensors()[tensor.name]), numpy_helper.to_array(tensor))
        assert not any(map(held.is_held, model_file.load(small_too).graph.initializer))
    assert not held.are_any()
    assert not any(map(held.is_held, model_file.load(file).graph.initializer))


def test_held_data_is_not_wanted_over_and_over(small: onnx.ModelProto, tmp_path: Path):
    file = apart(small, tmp_path / "model.onnx")
    model = onnx.load(file, load_external_data=False)
    for number in range(128):
        model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
        model.graph.initializer[-1].name = f"again{number}"
    file.write_bytes(model.SerializeToString())
    with held.area(tmp_path), pytest.raises(ModelError, match="over and over"):
        model_file.load(file)


def test_a_held_model_is_written_byte_for_byte_as_one_in_memory(small: onnx.ModelProto, tmp_path: Path):
    file = apart(small, tmp_path / "model.onnx")
    plain = model_file.load(file)
    with held.area(tmp_path):
        loaded = model_file.load(file)
        assert model_file.size_bytes(loaded) == plain.ByteSize()
        assert b"".join(pieces(loaded)) == plain.SerializeToString()
        model_file.save(loaded, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == plain.SerializeToString()


def test_one_too_large_for_one_file_is_held_where_it_was_saved(
    small: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(model_file, "INLINE_LIMIT_BYTES", 1 << 20)
    file, saved = apart(small, tmp_path / "model.onnx"), tmp_path / "saved.onnx"
    with held.area(tmp_path):
        loaded = model_file.load(file)
        model_file.save(loaded, saved)
        model_file.hold_saved(loaded, saved)
        file.with_name("model.onnx.data").write_bytes(b"")  # what was held there is held elsewhere now
        for tensor, wanted in zip(loaded.graph.initializer, small.graph.initializer, strict=True):
            assert np.array_equal(held.to_array(tensor), numpy_helper.to_array(wanted))
    assert {one.name for one in onnx.load(saved).graph.initializer} == {"w0", "w1"}


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_makes_the_same_of_held_weights(name: str, small: onnx.ModelProto, tmp_path: Path):
    def made(model: onnx.ModelProto) -> onnx.ModelProto:
        return apply_pass(configure(find(name), PASSES[name]), model, Context())[0]

    wanted = made(model_file.load(file := apart(small, tmp_path / "model.onnx")))
    with held.area(tmp_path):
        found = made(model_file.load(file))
        assert any(map(held.is_held, found.graph.initializer)) or name in ("codebook", "int8", "int4")
        model_file.save(found, tmp_path / "found.onnx")
    assert onnx.load(tmp_path / "found.onnx") == wanted


def test_the_command_makes_the_same_of_weights_in_another_file(small: onnx.ModelProto, tmp_path: Path):
    onnx.save(small, one := tmp_path / "one.onnx")
    recipe = "fold,prune(sparsity=0.5),codebook(bits=4)"
    for model in (one, apart(small, tmp_path / "apart.onnx")):
        out = tmp_path / model.stem
        words = [model, "--passes", recipe, "--no-latency", "--no-html", "--quiet", "--out", out / "out"]
        assert main([str(word) for word in words]) == 0
    first, second = ((tmp_path / name / "out" / "model.onnx").read_bytes() for name in ("one", "apart"))
    assert first == second
    assert not held.are_any()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_checkpoint_that_breaks_the_contract_goes_with_its_data(
    small: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*given: object) -> None:
        assert len(list((tmp_path / "out" / "steps").glob("*.data"))) == 1
        raise ContractError("the pass wrote nonsense")

    monkeypatch.setattr(model_file, "INLINE_LIMIT_BYTES", 1 << 20)
    monkeypatch.setattr(step, "_check", refuse)
    file = apart(small, tmp_path / "model.onnx")
    words = [file, "--passes", "prune", "--no-latency", "--no-html", "--quiet", "--out", tmp_path / "out"]
    assert main([str(word) for word in words]) == 1
    assert [one.name for one in (tmp_path / "out" / "steps").iterdir()] == ["run.json"]


def own_bytes() -> int:
    """Memory of this process that is no page of a file."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


@contextmanager
def grown() -> Iterator[Callable[[], int]]:
    """Gives how much more memory was in use at the most than before."""
    before, most, over = own_bytes(), [0], threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            most[0] = max(most[0], own_bytes() - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield lambda: most[0]
    finally:
        over.set()
        thread.join()


LAYERS, SIDE = 12, 1024
WEIGHTS = 4 * LAYERS * SIDE * SIDE


@pytest.fixture(scope="module")
def bigger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 MB of weights in another file."""
    return apart(chain(LAYERS, SIDE), tmp_path_factory.mktemp("bigger") / "model.onnx")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("name", "most"), {"fold": 0.5, "prune": 0.5, "codebook": 0.7, "int8": 1.0, "int4": 1.5}.items()
)
def test_a_step_holds_no_more_of_the_weights_than_it_changes(
    name: str, most: float, bigger: Path, tmp_path: Path
):
    with held.area(tmp_path), grown() as taken:
        model = model_file.load(bigger)
        after, _ = apply_pass(configure(find(name), PASSES[name]), model, Context())
        model_file.save(after, tmp_path / "after.onnx")
    assert taken() < most * WEIGHTS, f"{taken() / WEIGHTS:.2f} times the weights"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_packing_keeps_what_is_packed_in_files(bigger: Path, tmp_path: Path):
    packed = tmp_path / "packed.lathe"
    with grown() as taken:
        sizes = pack_file(bigger, packed, "fast")
    assert taken() < WEIGHTS, f"{taken() / WEIGHTS:.2f} times the weights"
    assert sizes.packed == packed.stat().st_size
    assert packed.read_bytes() == packed_file(bigger, "fast")
    unpack_file(packed, tmp_path / "again.onnx")
    wanted = [one.raw_data for one in model_file.load(bigger).graph.initializer]
    assert [one.raw_data for one in onnx.load(tmp_path / "again.onnx").graph.initializer] == wanted


def test_a_tensor_over_2_gib_is_looked_at_without_being_read(tmp_path: Path):
    columns = 65664
    model = chain(1, 64)
    weight = model.graph.initializer[0]
    weight.CopyFrom(TensorProto(name="w0", data_type=TensorProto.FLOAT, dims=(8192, columns)))
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="data")
    for value, size in ((model.graph.input[0], 8192), (model.graph.output[0], columns)):
        value.type.tensor_type.shape.dim[1].dim_value = size
    file = tmp_path / "model.onnx"
    file.write_bytes(model.SerializeToString())
    with (tmp_path / "data").open("wb") as data:  # a hole: it takes no space
        data.seek(4 * 8192 * columns - 4)
        data.write(np.float32(7).tobytes())
    with held.area(tmp_path):
        loaded = model_file.load(file)
        assert model_file.size_bytes(loaded) > 4 * 8192 * columns > 1 << 31
        values = read(import_model(loaded).tensors()["w0"])
        assert values.shape == (8192, columns)
        assert values[-1, -1] == 7


def test_what_the_disk_refuses_is_said_with_the_weight(tmp_path: Path):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(4,))
    with (
        held.area(tmp_path / "missing") as area,
        pytest.raises(LatheError, match=r"missing: weight 'w' cannot be"),
    ):
        area.write(tensor, bytes(16))
