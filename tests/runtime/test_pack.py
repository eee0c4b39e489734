"""The packed container: lossless for every kind of tensor, small where there is structure, and decodable
from its description alone.
"""

import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.pack import Unpacker, container, pack, plans, unpack
from onnx_lathe.runtime.pack.coders import varint
from onnx_lathe.runtime.pack.coders.arithmetic import LIMIT, LN, ONE, SQUASH, UNIT
from tests.support import pack_reference, packing
from tests.support.models import MODELS, shipped_with_onnx

ARRAYS = packing.arrays()
DICTIONARY_CRC = 0x005665AC
FOREIGN = sorted({*shipped_with_onnx("light/*.onnx")[::3], *shipped_with_onnx("*/*/model.onnx")[::4]})


def modes(packed: bytes) -> list[int]:
    return [plan.mode for plan in Unpacker(packed).plans]


@pytest.fixture(params=["small", "blocks"])
def budget(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both coders, though a tensor of this size would get only one of them."""
    if request.param == "blocks":
        monkeypatch.setattr(container, "ADAPTIVE_BUDGET", 0)
    return str(request.param)


@pytest.mark.parametrize("name", ARRAYS)
def test_each_kind_of_tensor_comes_back(name: str, budget: str) -> None:
    content = packing.model({name: ARRAYS[name]})
    packed = pack(content)
    assert unpack(packed) == content
    assert pack_reference.decode(packed) == content


def test_tensors_of_one_model_share_what_was_learned(budget: str) -> None:
    content = packing.model(ARRAYS)
    packed = pack(content)
    assert unpack(packed) == content
    assert pack_reference.decode(packed) == content
    found = modes(packed)
    assert {plans.COPY, plans.EMPTY, plans.ADAPTIVE if budget == "small" else plans.BLOCKS} <= set(found)
    if budget == "small":
        assert any(plan.layout and plan.layout.link for plan in Unpacker(packed).plans)


def test_packing_is_deterministic() -> None:
    content = packing.model({name: ARRAYS[name] for name in ("dense", "after", "conv", "int8", "bias")})
    assert pack(content) == pack(content)


@pytest.mark.parametrize("path", FOREIGN, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_foreign_models_come_back(path: Path) -> None:
    content = path.read_bytes()
    packed = pack(content)
    assert unpack(packed) == content
    assert len(packed) <= len(content) + 24


@pytest.mark.parametrize(
    "storage", ["float_data", "double_data", "int32_data", "int64_data", "uint64_data", "raw_data"]
)
def test_data_stays_in_the_field_that_it_was_in(storage: str) -> None:
    types = {
        "double_data": TensorProto.DOUBLE,
        "int32_data": TensorProto.INT8,
        "int64_data": TensorProto.INT64,
        "uint64_data": TensorProto.UINT64,
    }
    tensor = TensorProto(name="t", data_type=types.get(storage, TensorProto.FLOAT), dims=[8, 5])
    if storage == "raw_data":
        tensor.raw_data = np.arange(40, dtype=np.float32).tobytes()
    else:
        getattr(tensor, storage).extend(range(40))
    content = packing.model([tensor])
    assert onnx.load_from_string(unpack(pack(content))) == onnx.load_from_string(content)
    assert pack_reference.decode(pack(content)) == content


def test_tensors_are_found_wherever_they_are() -> None:
    def tensor(name: str) -> TensorProto:
        return numpy_helper.from_array(packing.pruned((40, 50), 0.05, 4), name)

    sparse = onnx.SparseTensorProto(
        values=numpy_helper.from_array(np.zeros(500, np.float32), "s"), dims=[10000]
    )
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(500, dtype=np.int64)))
    branch = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "branch", [], [], [tensor("w")])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor("")),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node(
            "Odd",
            [],
            ["o"],
            domain="own",
            many=[tensor("p"), tensor("q")],
            few=sparse,
            whole=[branch, branch],
        ),
    ]
    function = helper.make_function(
        "own", "F", [], ["r"], [helper.make_node("Constant", [], ["r"], value=tensor("f"))], []
    )
    graph = helper.make_graph(nodes, "g", [], [], [tensor("t")], sparse_initializer=[sparse])
    content = helper.make_model(graph, functions=[function]).SerializeToString()
    packed = pack(content)
    assert unpack(packed) == pack_reference.decode(packed) == content
    # all nine pruned tensors are alike, and so are the two sparse ones
    assert modes(packed).count(plans.COPY) == 10
    assert len(packed) < 900


def test_unknown_fields_and_odd_tensors_are_kept() -> None:
    odd = [
        TensorProto(name="no_shape_for_it", data_type=TensorProto.FLOAT, dims=[2], raw_data=bytes(range(99))),
        TensorProto(name="negative", data_type=TensorProto.FLOAT, dims=[-3], raw_data=bytes(64)),
        TensorProto(name="no_type", dims=[4], raw_data=bytes(64)),
        TensorProto(name="stripped", data_type=TensorProto.FLOAT, dims=[1000], raw_data=b""),
        TensorProto(name="padding", data_type=TensorProto.UINT4, dims=[33], raw_data=b"\x11" * 16 + b"\xf1"),
        TensorProto(name="half", data_type=TensorProto.FLOAT, dims=[9], float_data=[1.0]),
    ]
    content = packing.model(odd) + b"\xfa\x3e\x05hello" + b"\x80\x3f\x07"  # fields 1007 and 1008
    packed = pack(content)
    assert unpack(packed) == content
    assert pack_reference.decode(packed) == content
    assert onnx.load_from_string(unpack(packed)) == onnx.load_from_string(content)


def test_compressed_networks_are_coded_below_their_entropy() -> None:
    """Two linked layers with dead rows and columns, 16 shared values: (mask, index) by zero-order codes is
    what the contexts must beat.
    """
    generator = np.random.default_rng(5)
    alive, used = np.exp(2 * generator.standard_normal(200)), np.exp(2 * generator.standard_normal(400))
    first = generator.random((200, 400)) < np.minimum(0.9, 0.004 * alive[:, None] * used)
    second = generator.random((40, 200)) < np.minimum(
        0.9, 0.05 * np.exp(generator.standard_normal((40, 1))) * first.any(axis=1)
    )
    total, tensors = 0.0, {}
    for name, mask in (("first", first), ("second", second)):
        index = np.where(
            mask, generator.choice([0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15], mask.shape), 7
        )
        tensors[name] = index.astype(np.uint8)
        share = mask.mean()
        total += (
            -mask.size * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) / 8
            + mask.sum() * np.log2(15) / 8
        )
    content = packing.model(tensors)
    packed = pack(content)
    assert unpack(packed) == content
    assert len(packed) < 0.9 * total, (len(packed), total)


def test_two_of_four_costs_what_its_patterns_cost(budget: str) -> None:
    values = np.sign(packing.two_of_four((256, 256)))
    content = packing.model({"w": values})
    packed = pack(content)
    assert unpack(packed) == content
    bits = values.size * (np.log2(6) / 4 + 0.5)  # six patterns of four, a sign for each that is left
    assert len(packed) < 1.05 * bits / 8 + 150


@pytest.mark.slow
def test_plain_floats_gain_what_is_possible() -> None:
    content = (MODELS / "resnet20-cifar10" / "model.onnx").read_bytes()
    packed = pack(content)
    assert unpack(packed) == content
    assert len(packed) < 0.825 * len(content)  # zstd -19 takes 0.92 of it


def test_few_bits_of_a_mantissa_cost_few_bits() -> None:
    coarse = (
        np.random.default_rng(0).standard_normal(2000).astype(np.float32).view(np.uint32) & 0xFFF80000
    ).view(np.float32)
    fine = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    assert len(pack(packing.model({"w": coarse}))) < 2000 * (2.6 + 1 + 4.1) / 8 + 150
    assert len(pack(packing.model({"w": fine}))) < 2000 * (2.6 + 1 + 23.1) / 8 + 150


def test_tables_do_not_depend_on_how_a_machine_rounds() -> None:
    """A double's logarithm is right to 1e-15; no entry is so near a half that this could matter."""
    logarithms = UNIT * np.log(np.arange(2, ONE + 1))
    assert np.abs(logarithms - np.floor(logarithms) - 0.5).min() > 1e-7
    squashed = ONE / (1 + np.exp(-np.arange(-LIMIT, LIMIT + 1) / UNIT))
    away = np.abs(squashed - np.floor(squashed) - 0.5)
    assert np.delete(away, LIMIT).min() > 1e-7
    assert (LN[1], LN[2], LN[ONE]) == (0, 710, 11357)
    assert (SQUASH[0], SQUASH[LIMIT], SQUASH[-1]) == (1, 32768, 65535)
    assert (np.diff(SQUASH) >= 0).all()


@pytest.mark.parametrize("wrong", [b"", b"\x89LT", b"onnx", packing.model({})])
def test_what_is_not_packed_is_said(wrong: bytes) -> None:
    with pytest.raises(ModelError, match="is not a packed file"):
        unpack(wrong)


def test_what_is_not_protobuf_is_refused() -> None:
    for wrong in (b"\xff" * 30, b"\x0b\x0c", b"\x3a\x7f"):
        with pytest.raises(ModelError):
            pack(wrong)


def test_narrow_elements_in_several_chunks_begin_at_whole_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """4-bit elements in rows of three: a chunk of an odd number of rows would begin inside a byte."""
    monkeypatch.setattr(container, "ADAPTIVE_BUDGET_BIG", 0)
    halves = np.random.default_rng(0).choice(np.array([0, 1, 16], np.uint8), 2_250_000, p=[0.9, 0.05, 0.05])
    content = packing.model(
        [TensorProto(name="w", data_type=TensorProto.UINT4, dims=[1_500_000, 3], raw_data=halves.tobytes())]
    )
    packed = pack(content)
    assert modes(packed) == [plans.BLOCKS]
    assert unpack(packed) == content


def test_data_that_does_not_fit_its_shape_counts_as_what_is_coded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "ADAPTIVE_BUDGET", 2000)
    monkeypatch.setattr(plans, "MOST_ADAPTIVE", 2000)
    random = np.random.default_rng(0)
    data = [random.integers(0, 3, 1500, np.uint8).tobytes() for _ in range(3)]
    content = packing.model(
        [
            TensorProto(name=f"w{n}", data_type=TensorProto.FLOAT, dims=[1], raw_data=raw)
            for n, raw in enumerate(data)
        ]
    )
    packed = pack(content)
    assert modes(packed).count(plans.ADAPTIVE) == 1
    assert unpack(packed) == content


def test_numbers_written_longer_than_needed_come_back_as_they_were() -> None:
    raw = np.random.default_rng(0).standard_normal(100).astype(np.float32).tobytes()
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[100], raw_data=raw).SerializeToString()
    padded = tensor.replace(b"\x4a\x90\x03", b"\x4a\x90\x83\x80\x00")
    assert len(padded) == len(tensor) + 2
    graph = b"\x12\x01g\x2a" + varint.write(len(padded)) + padded
    content = b"\x08\x0a\x3a" + varint.write(len(graph)) + graph
    assert onnx.load_from_string(content).graph.initializer[0].raw_data == raw
    packed = pack(content)
    assert unpack(packed) == content
    assert pack_reference.decode(packed) == content


def test_the_dictionary_is_the_one_that_files_were_packed_with() -> None:
    """Changing it makes every packed file unreadable: it is part of version 1."""
    assert zlib.crc32(pack_reference.DICTIONARY.read_bytes()) == DICTIONARY_CRC
