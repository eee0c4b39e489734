"""ONNX Runtime on the CPU: sessions, outputs, and latency that can be compared."""

import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from onnx_lathe.errors import CrashError, ModelError
from onnx_lathe.runtime.files.signature import made_up_shape, takes_one_sample
from onnx_lathe.runtime.running import bfloat16, guard
from onnx_lathe.runtime.running.settings import FUSED, ORT_FORMAT, PLAIN, Settings, create
from onnx_lathe.runtime.running.sources import readable
from onnx_lathe.runtime.threads import limit

onnxruntime.set_default_logger_severity(3)  # its warnings are about its own optimizer

VERSION = str(onnxruntime.__version__)

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    bfloat16.TYPE: np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}

LEAST_ROUNDS = 5

_HELPED: "weakref.WeakSet[onnxruntime.InferenceSession]" = weakref.WeakSet()

HELPED = (
    "ONNX Runtime loads this model only without its QDQPropagationTransformer (disabled_optimizers=[...] of InferenceSession), "
    "which breaks INT8 pairs at opset 21 and above; what the target ort builds loads as it is"
)

_BROKEN_PAIR = "output_dtype INT8 does not match y_zero_point type UINT8"

UNKNOWN_OPERATOR = "Lathe runs what it compiles: export the model with operators of the ONNX standard"
NO_KERNEL = "its CPU provider has no kernel of this node for these types: export the model in float32"
NO_BFLOAT16 = "the model is in bfloat16, of which ONNX Runtime's CPU provider lacks most operators: give it in float16 or float32"

_REFUSALS = tuple(
    getattr(onnxruntime.capi.onnxruntime_pybind11_state, name)
    for name in (
        *(
            "Fail",
            "InvalidArgument",
            "InvalidGraph",
            "InvalidProtobuf",
            "ModelLoaded",
            "NoModel",
            "NoSuchFile",
            "NotImplemented",
        ),
        "RuntimeException",
    )
    if hasattr(onnxruntime.capi.onnxruntime_pybind11_state, name)
)

_IN_FLOAT = ("session.disable_quant_qdq", "1")


class _DiedError(Exception):
    """ONNX Runtime has ended the process that loaded a model; the message is how."""


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    try:
        yield
    except _DiedError as error:
        if str(error) == guard.KILLED:
            raise CrashError(f"ONNX Runtime {VERSION} cannot {what}: {error}") from None
        raise CrashError(f"ONNX Runtime {VERSION} crashes ({error}) when it is to {what}") from None
    except (*_REFUSALS, UnicodeDecodeError) as error:
        text = "an output holds text that is not UTF-8; encode it so where the model was made"
        reason = text if isinstance(error, UnicodeDecodeError) else " ".join(str(error).split())
        advice = "; " + UNKNOWN_OPERATOR if "is not a registered function/op" in reason else ""
        raise ModelError(f"ONNX Runtime cannot {what}: {reason}{advice}") from error


def session(
    model: onnx.ModelProto | bytes | str | Path,
    threads: int = 0,
    optimized: bool = True,
    lean: bool = False,
    integer: bool = True,
    guarded: bool = True,
) -> onnxruntime.InferenceSession:
    """A CPU session. `threads` 0 means as --threads says, or one per core. Prefer a path for a large model: a ModelProto is
    copied once more, above 1.9 GB to a file.

    A packed file (runtime/pack), its path or its content, is decoded in memory. `lean` loads in two thirds
    of the memory, and runs slower: weights are not packed for the processor. Without `integer`, layers
    between Q/DQ pairs compute in float, as the graph says. Without `guarded`, a crash of ONNX Runtime as it
    loads the model is the caller's.

    x86-64 processors without VNNI add products of INT8 in 16 bits, which saturate. Here they take an
    exact, slower way, so that results are the graph's everywhere.

    Raises ModelError with ONNX Runtime's reason if it cannot load the model; for a packed file that is
    damaged, or unpacks to over 2 GB; CrashError if it does not survive the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or limit()
    options.log_severity_level = 4  # what fails is raised, and need not be printed too
    if lean:
        options.add_session_config_entry("session.disable_prepacking", "1")
    settings = Settings(
        level="ORT_ENABLE_ALL" if optimized else "ORT_DISABLE_ALL", entries=() if integer else (_IN_FLOAT,)
    )
    make = _survived if guarded else create
    with readable(model) as source:
        try:
            with _refusing(f"load {_title(model)}"):
                return (_open_exact if saturates() else _open)(source, settings, options, make)
        except ModelError as error:
            if "NOT_IMPLEMENTED" not in str(error):
                raise
            advice = NO_BFLOAT16 if bfloat16.is_stored_in(source) else NO_KERNEL
            raise ModelError(f"{error}; {advice}") from error


def plain_session(
    model: onnx.ModelProto | Path, threads: int = 0, options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    """The session that a user opens on a file: ONNX Runtime's own way on this processor, and nothing but
    the number of threads chosen. What it computes and how long it takes is what the user gets.

    `options` may ask for records beside. Raises ModelError with ONNX Runtime's reason if it cannot load the
    model, CrashError if it does not survive it.
    """
    if options is None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # as in `session`
    options.intra_op_num_threads = threads or limit()
    settings = replace(PLAIN, written=bool(options.optimized_model_filepath))
    with readable(model) as source, _refusing(f"load {_title(model)}"):
        return _survived(source, settings, options)


def as_opened(model: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """A plain session; of a model that it refuses, the one of `session` (`is_helped` tells), or its ModelError."""
    try:
        return plain_session(model, threads)
    except CrashError:
        raise
    except ModelError:
        return session(model, threads)


def survive(model: onnx.ModelProto | Path) -> None:
    """Raises CrashError if a plain session ends the process that opens it. Opens none here."""
    with readable(model) as source, _refusing(f"load {_title(model)}"):
        _survive(source, PLAIN)


SATURATES = (
    "this processor adds products of INT8 in 16 bits, which saturate; figures of this form are of an exact, slower "
    "way (session.x64quantprecision=1, or float where ONNX Runtime cannot load that): set it too where the "
    "model runs on such a processor, or build with --target ort, whose file is exact everywhere"
)


@cache
def saturates() -> bool:
    """Whether a plain session computes INT8 with sums that saturate: on x86-64 without VNNI.

    Found out by a product of 1 x 256 and 256 x 1, all of the largest levels.
    """
    one = onnx.helper.make_tensor
    scale, zero = one("s", onnx.TensorProto.FLOAT, (), [1.0]), one("z", onnx.TensorProto.UINT8, (), [0])
    wide = one("ws", onnx.TensorProto.FLOAT, (), [65536.0])
    weight = onnx.numpy_helper.from_array(np.full((256, 1), 127, np.int8), "w")
    node = onnx.helper.make_node("QLinearMatMul", ["x", "s", "z", "w", "s", "wz", "ws", "z"], ["y"])
    graph = onnx.helper.make_graph(
        [node],
        "saturates",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, (1, 256))],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, (1, 1))],
        [scale, zero, wide, weight, one("wz", onnx.TensorProto.INT8, (), [0])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    feeds = {"x": np.full((1, 256), 255, np.uint8)}
    exact = 255 * 127 * 256 // 65536
    opened = create(model.SerializeToString(), PLAIN, onnxruntime.SessionOptions())
    return bool(opened.run(None, feeds)[0].item() < exact)


def write_optimized(model: Path, path: Path, settings: Settings = FUSED) -> None:
    """Writes the graph that ONNX Runtime would compute: operators fused, in ONNX Runtime's own domains,
    without execution. `settings`: one of those in settings.py that write.

    Raises ModelError with ONNX Runtime's reason if it cannot load the model, or not write its graph, which
    must be below 2 GB; CrashError if it does not survive that.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = limit()
    options.optimized_model_filepath = str(path)
    with readable(model) as source, _refusing(f"optimize {model}"):
        _open(source, settings, options, _survived)


def check_ort_format(path: Path) -> None:
    """Raises ModelError for an `.ort` file that ONNX Runtime refuses, CrashError if it does not survive it."""
    with _refusing(f"load {path}"):
        _survived(str(path), ORT_FORMAT, onnxruntime.SessionOptions())


def is_helped(session: onnxruntime.InferenceSession, model: onnx.ModelProto | Path) -> bool:
    """Whether ONNX Runtime by itself would have refused the session's model; HELPED says why.

    Where sums are computed exactly, by other transformers, it is asked.
    """
    if session in _HELPED or not saturates():
        return session in _HELPED
    try:
        plain_session(model)
    except ModelError as error:
        return _BROKEN_PAIR in str(error)
    return False


def _survive(source: bytes | str, settings: Settings) -> None:
    if how := guard.crash(source, settings):
        raise _DiedError(how)


def _survived(
    source: bytes | str, settings: Settings, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    """As `create` does it, once a child has."""
    _survive(source, settings)
    return create(source, settings, options)


def _open(
    source: bytes | str, settings: Settings, options: onnxruntime.SessionOptions, make: Any
) -> onnxruntime.InferenceSession:
    """Without ONNX Runtime's moving of pairs where that breaks: beyond a Reshape, from opset 21 on, it
    gives INT8 a zero-point of UINT8. `make` is `create` or `_survived`.
    """
    try:
        return make(source, settings, options)
    except _REFUSALS as error:
        if _BROKEN_PAIR not in str(error):
            raise
        helped = replace(settings, left_out=("QDQPropagationTransformer", *settings.left_out))
        opened = make(source, helped, options)
        _HELPED.add(opened)
        return opened


def _open_exact(
    source: bytes | str, settings: Settings, options: onnxruntime.SessionOptions, make: Any
) -> onnxruntime.InferenceSession:
    """For processors whose sums of INT8 saturate: ONNX Runtime makes weights UINT8, which it adds exactly.

    Its transformer for weights in Q/DQ pairs is left out (seen in 1.32): it converts a weight that two
    layers read twice, which does not load, and gives one that is quantized per channel without a
    zero-point a zero-point of rank 0, which does not run. The one for weights of integer kernels does the
    same work later. What it cannot load computes layers between pairs in float, as the graph says.
    """
    exact = replace(settings, entries=(*settings.entries, ("session.x64quantprecision", "1")))
    severity, options.log_severity_level = options.log_severity_level, 4
    try:
        return _open(source, replace(exact, left_out=("QDQS8ToU8Transformer",)), options, make)
    except _REFUSALS:
        options.log_severity_level = severity
        return _open(source, replace(exact, entries=(*exact.entries, _IN_FLOAT)), options, make)


def _title(model: onnx.ModelProto | bytes | str | Path) -> str:
    return str(model) if isinstance(model, str | Path) else "the model"


def run(open_session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name, those of bfloat16 as float32. Of a sequence each tensor has a name of its own, as NAME[0];
    maps of one kind, as ZipMap makes of scores, become an array [samples, keys].

    Raises ModelError with ONNX Runtime's reason if it cannot run the feeds.
    """
    names = [output.name for output in open_session.get_outputs()]
    with _refusing("run the model"):
        values = bfloat16.call(open_session, names, feeds)
    found: dict[str, np.ndarray] = {}
    for name, value in zip(names, values, strict=True):
        found.update(_tensors(name, value))
    return found


def _tensors(name: str, value: object) -> Iterator[tuple[str, np.ndarray]]:
    if value is None:  # an optional output that has no value
        return
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        keys = list(value[0])
        if all(list(one) == keys for one in value):
            yield name, np.array([[one[key] for key in keys] for one in value])
            return
    if isinstance(value, list | dict):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(f"{name}[{key}]", one)
        return
    yield name, np.asarray(value)


def random_feeds(
    open_session: onnxruntime.InferenceSession,
    batch: int = 1,
    seed: int = 0,
    size: int = 1,
    last: bool = False,
) -> dict[str, np.ndarray]:
    """Standard normal values (zeros for integers) for every input. Unknown first dimensions, and others of their
    names, are `batch`, or 1 where the inputs cannot hold a batch along their first axes; the rest are `size`, or 1 where
    `last` gives only last ones that size.

    Raises ModelError for an input that is not a plain tensor.
    """
    generator = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    inputs = open_session.get_inputs()
    batch = 1 if takes_one_sample([value.shape for value in inputs]) else batch
    names = {value.shape[0] for value in inputs if value.shape} - {None}
    for value in inputs:
        if value.type not in DTYPES:
            raise ModelError(f"input '{value.name}' is {value.type}; give data for it with --data")
        shape = made_up_shape(value.shape, batch, names, size, last)
        dtype = DTYPES[value.type]
        feeds[value.name] = (
            generator.standard_normal(shape).astype(dtype)
            if np.issubdtype(dtype, np.floating)
            else np.zeros(shape, dtype)
        )
    return feeds


def times(
    sessions: Sequence[Any], feeds: Mapping[str, np.ndarray], *, budget_s: float = 1.0, most: int = 200
) -> np.ndarray:
    """Milliseconds [rounds, sessions] on the same feeds, run in turn A B A B so that all see the same machine.

    Stops after `budget_s` seconds once LEAST_ROUNDS are in, and after `most`; the first is not counted.
    """
    rounds: list[list[float]] = []
    names = [[output.name for output in one.get_outputs()] for one in sessions]
    started = time.perf_counter()
    while len(rounds) <= most and (len(rounds) <= LEAST_ROUNDS or time.perf_counter() - started < budget_s):
        rounds.append([])
        for one, outputs in zip(sessions, names, strict=True):
            clock = getattr(one, "call_ms", None)  # a session in another process has its own
            begin = time.perf_counter()
            with _refusing("run the model"):
                own: Any = clock(feeds) if clock else bfloat16.call(one, outputs, feeds)
            rounds[-1].append(own if clock else 1e3 * (time.perf_counter() - begin))
    return np.array(rounds[1:])


def latency_pair(
    base: Any, candidate: Any, feeds: Mapping[str, np.ndarray], *, budget_s: float = 1.0, most: int = 200
) -> tuple[float, float]:
    """Median milliseconds of (base, candidate), as `times` finds them."""
    medians = np.median(times((base, candidate), feeds, budget_s=budget_s, most=most), axis=0)
    return float(medians[0]), float(medians[1])


class PairTimer:
    """Times two models on random input for at most `budget_s` seconds, or longer for a few rounds.
    Implements Timer of passes/core/services.py.
    """

    def __init__(self, budget_s: float = 0.5) -> None:
        self.budget_s = budget_s

    def latencies(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> tuple[float, float]:
        one, other = session(base), session(candidate)
        return latency_pair(one, other, random_feeds(one), budget_s=self.budget_s)


class OneTimeEvaluator:
    """Computes small models once, on one thread. Implements Evaluator of passes/graph/evaluate.py."""

    def evaluate(self, model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        opened = session(model, threads=1, optimized=False)
        if bfloat16.has_ports(opened):
            raise ModelError("an array of bfloat16 is none that can be stored")
        return list(run(opened, feeds).values())
