"""effort=fast: nothing is coded adaptively, the same decoder reads it, and it costs little; and what progress hears."""

import json
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.pack import Unpacker, pack, plans, unpack
from tests.support import pack_reference, packing
from tests.support.command import refused

ARRAYS = packing.arrays()


def trained(seed: int = 4) -> dict[str, np.ndarray]:
    """Float weights as layers have them: of one size per output channel."""
    generator = np.random.default_rng(seed)
    layer = generator.standard_normal((96, 512)) * np.exp(generator.standard_normal((96, 1)) / 2) / 20
    return {"layer": layer.astype(np.float32), "bias": generator.standard_normal(96).astype(np.float32)}


@pytest.mark.parametrize("name", ARRAYS)
def test_each_kind_of_tensor_comes_back_from_fast(name: str) -> None:
    content = packing.model({name: ARRAYS[name]})
    packed = pack(content, effort="fast")
    assert unpack(packed) == content
    assert pack_reference.decode(packed) == content


def test_fast_codes_nothing_adaptively() -> None:
    content = packing.model(ARRAYS)
    packed = pack(content, effort="fast")
    assert unpack(packed) == content == pack_reference.decode(packed)
    modes = {plan.mode for plan in Unpacker(packed).plans}
    assert plans.ADAPTIVE not in modes
    assert {plans.BLOCKS, plans.COPY, plans.STORED} <= modes


def test_fast_is_little_larger_and_much_faster_on_float_weights() -> None:
    content = packing.model(trained())
    sizes, seconds = {}, {}
    for effort in ("best", "fast"):
        started = time.process_time()
        packed = pack(content, effort=effort)
        seconds[effort], sizes[effort] = time.process_time() - started, len(packed)
        assert unpack(packed) == content
    assert sizes["best"] < sizes["fast"] <= 1.03 * sizes["best"]
    assert 10 * seconds["fast"] <= seconds["best"], "it is some thirty times; benchmarks/pack.py has figures"


def test_fast_still_finds_what_repeats() -> None:
    content = packing.model(
        {"repeated": np.tile(np.random.default_rng(2).random(700).astype(np.float32), 64)}
    )
    assert len(pack(content, effort="fast")) < 4000


def test_progress_hears_every_byte_once() -> None:
    heard: list[tuple[int, int]] = []
    content = packing.model(trained())
    pack(content, progress=lambda done, total: heard.append((done, total)))
    assert heard[-1] == (4 * (96 * 512 + 96), 4 * (96 * 512 + 96))
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert len(heard) > 2


def test_an_unknown_effort_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(packing.model(trained()))
    with pytest.raises(UsageError, match="effort is fast or best, not 'quick'"):
        onnx_lathe.pack(tmp_path / "model.onnx", effort="quick")
    assert "quick" in refused(capsys, ["pack", str(tmp_path / "model.onnx"), "--effort", "quick"])


def test_command_and_target_take_the_effort(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "<ir_version: 10, opset_import: ['' : 21]> g (float[N, 96] x) => (float[N, 512] y) { y = MatMul (x, layer) }"
    model = onnx.parser.parse_model(text.replace("'", '"'))
    model.graph.initializer.append(onnx.numpy_helper.from_array(trained()["layer"], "layer"))
    onnx.save(model, tmp_path / "model.onnx")
    sizes = {}
    for effort in ("best", "fast"):
        packed = tmp_path / f"{effort}.lathe"
        assert (
            main(["pack", str(tmp_path / "model.onnx"), "-o", str(packed), "--effort", effort, "--json"]) == 0
        )
        told = json.loads(capsys.readouterr().out)
        sizes[effort] = told["packed_bytes"]
        assert told["effort"] == effort
        assert sizes[effort] == packed.stat().st_size
    assert sizes["best"] < sizes["fast"]
    record = onnx_lathe.optimize(
        tmp_path / "model.onnx", "fold", targets="pack(effort=fast)", gates="packed ratio >= 1.1",
        out=tmp_path / "out", latency=False,
    )  # fmt: skip
    assert record.targets[0].details["effort"] == "fast"
    assert record.targets[0].size_bytes == record.final()["packed"]
    assert record.gates[0].passed
    with pytest.raises(UsageError, match="must be one of fast, best, not 'slow'"):
        onnx_lathe.build(tmp_path / "model.onnx", "pack(effort=slow)", tmp_path / "other")
