"""effort=fast: nothing is coded adaptively, the same decoder reads it, and it costs little; and what progress hears."""

import base64
import json
import time
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.pack import Unpacker, pack, plans, unpack
from onnx_lathe.runtime.pack.coders import blocks, static
from tests.support import pack_reference, packing
from tests.support.command import refused

ARRAYS = packing.arrays()
EARLIER_CRC = 0x1134BA9A
EARLIER = (
    "iA+>T0frj^M?wGq?EwH(0zU{2IyDjjXDSZ}140F4Wo~m20YU~Cba!cEWl8`Bs{#gh0viVaVtB?tTx9tM9XvBM?;e=VjAUgm0"
    "1~~5kOD3!wJ-f(5CA0s0O$Y%fC7LZ%t_2qgJ82#fJn0*<`A<60J8#s1hWnS0O1s90{8*vRK6Y5O0=dFH%~&o7P=RVbI9=E&>"
    "mk=Aw{mV2=fV65MmYao!!@M2k1pnlPMomB!me{wKdd?U9eic*)B=6Md5fapEKV#M?{MIxutff$dgEZ!eP=-zUNWKHZr~!>x<"
    "zEQA+}4^?2~CH(W~DtYzY<58YiYbe)Nb(fzLiWZM@~F7L_mho@)d!6H`J$Uu=qLe$22XTZ9%o`~UsZ<>ThCI1?gWK|Y5l{qW"
    "Pbz||mp-{S|dYe^r{i9<X1AF?x1l1S+cE>bF(uzhxLmb-m2oTP%V*+X53+|8_Q<EPuGzn@$MMJMfF*N-`0Y63)<*uVTLnyT`"
    "{UAEg0RRgC1mD%xJ#4=KKE3iIKYvCCz7V+P0?aAq9Lx!sBLD!I1G5&H1G5I10{{R300f?m0l81!rvb}*F*>0MVzl9x9quE;!"
    "URThR_!%XpG5n>JVmBB#ue~(dCriG0i$dq2o=(~|77C)fgvchFa03El>h)J000310t5hnNV*~c81SF~3xuLZ1p"
)
"""An int8 tensor [16, 40], a sparse float one of four values [16, 40] and 24 int64: packed by Lathe 0.2.0, effort=fast."""


def trained(seed: int = 4) -> dict[str, np.ndarray]:
    """Float weights as layers have them: of one size per output channel."""
    generator = np.random.default_rng(seed)
    layer = generator.standard_normal((48, 512)) * np.exp(generator.standard_normal((48, 1)) / 2) / 20
    return {"layer": layer.astype(np.float32), "bias": generator.standard_normal(48).astype(np.float32)}


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


def depthwise(layers: int = 5) -> dict[str, np.ndarray]:
    """A small network of depthwise and pointwise convolutions with their biases: many tensors, each of a few kB."""
    generator, found = np.random.default_rng(5), {}
    for layer in range(layers):
        channels = 16 + 8 * layer
        for name, shape in {
            "d": (channels, 1, 3, 3),
            "p": (channels + 8, channels, 1, 1),
            "b": (channels,),
        }.items():
            size = np.exp(generator.standard_normal((shape[0], *[1] * (len(shape) - 1))) / 2)
            found[f"{name}{layer}"] = (generator.standard_normal(shape) * size / 9).astype(np.float32)
    return found


def test_fast_is_little_larger_on_a_network_of_small_layers() -> None:
    content = packing.model(depthwise())
    packed = pack(content, effort="fast")
    assert unpack(packed) == content == pack_reference.decode(packed)
    assert len(packed) <= 1.03 * len(pack(content)), "headers of single layers must not eat what they save"


def test_fast_finds_numbers_that_occur_again() -> None:
    """A bank of symmetric filters: no number is beside its twin, and zstd's quick look saves nothing."""
    half = np.random.default_rng(6).standard_normal((48, 128)).astype(np.float32)
    content = packing.model({"bank": np.concatenate([half, half[:, ::-1]], axis=1)})
    packed = pack(content, effort="fast")
    assert unpack(packed) == content == pack_reference.decode(packed)
    assert len(packed) < 0.75 * len(content)


def test_what_fast_has_not_counted_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a big tensor only some pieces are counted: exponents and mantissas that are only in the others, too, decode."""
    monkeypatch.setattr(blocks, "QUICK_ELEMENTS", 1 << 8)
    monkeypatch.setattr(static, "PIECE", 1 << 6)
    values = np.random.default_rng(7).standard_normal((120, 64)).astype(np.float32)
    values[61, 40:44] = [np.inf, -0.0, np.nan, -np.finfo(np.float32).max]
    content = packing.model({"values": values})
    packed = pack(content, effort="fast")
    assert [plan.mode for plan in Unpacker(packed).plans] == [plans.BLOCKS]
    assert unpack(packed) == content == pack_reference.decode(packed)


def test_rows_of_several_sizes_whose_last_is_short_come_back() -> None:
    values = np.random.default_rng(8).standard_normal((1 << 17) + 9000)
    values *= np.exp2(np.arange(values.size) // (1 << 16) * 6)
    content = packing.model({"values": values.astype(np.float32)})
    packed = pack(content, effort="fast")
    assert [plan.mode for plan in Unpacker(packed).plans] == [plans.BLOCKS]
    assert unpack(packed) == content == pack_reference.decode(packed)


def test_a_file_of_an_earlier_lathe_unpacks() -> None:
    """Its dense tensor has a commonest value in the header, which no longer is written."""
    packed = base64.b85decode(EARLIER)
    assert [plan.mode for plan in Unpacker(packed).plans] == [plans.BLOCKS, plans.BLOCKS, plans.ZSTD]
    assert zlib.crc32(unpack(packed)) == EARLIER_CRC


def test_fast_still_finds_what_repeats() -> None:
    content = packing.model(
        {"repeated": np.tile(np.random.default_rng(2).random(700).astype(np.float32), 64)}
    )
    assert len(pack(content, effort="fast")) < 4000


def test_progress_hears_every_byte_once() -> None:
    heard: list[tuple[int, int]] = []
    content = packing.model(trained())
    pack(content, progress=lambda done, total: heard.append((done, total)))
    assert heard[-1] == (4 * (48 * 512 + 48), 4 * (48 * 512 + 48))
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert len(heard) > 2


def test_an_unknown_effort_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(packing.model(trained()))
    with pytest.raises(UsageError, match="effort is fast or best, not 'quick'"):
        onnx_lathe.pack(tmp_path / "model.onnx", effort="quick")
    assert "quick" in refused(capsys, ["pack", str(tmp_path / "model.onnx"), "--effort", "quick"])


def test_command_and_target_take_the_effort(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "<ir_version: 10, opset_import: ['' : 21]> g (float[N, 48] x) => (float[N, 512] y) { y = MatMul (x, layer) }"
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
