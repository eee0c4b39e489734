"""Networks whose inputs do not all begin with a batch axis, and samples for them: each is one call."""

from pathlib import Path

import numpy as np
import onnx

from tests.support.builders import build

FEATURES, CLASSES, SAMPLES = 12, 5, 40


def stateful() -> onnx.ModelProto:
    """x [N, 12], state [2, N, 16] and a single number gain -> scores [N, 5] and next [2, N, 16]."""
    rng = np.random.default_rng(5)
    return build(
        """(float[N, 12] x, float[2, N, 16] state, float gain) => (float[N, 5] scores, float[2, N, 16] next) {
            louder = Mul(x, gain)
            hidden = Gemm<transB=1>(louder, w1, b1)
            past = ReduceSum<keepdims=0>(state, first)
            sum = Add(hidden, past)
            kept = Relu(sum)
            scores = Gemm<transB=1>(kept, w2, b2)
            fresh = Unsqueeze(kept, first)
            faded = Mul(state, decay)
            next = Add(faded, fresh)
        }""",
        first=np.array([0]),
        decay=np.float32(0.9),
        w1=0.3 * rng.standard_normal((16, FEATURES)).astype(np.float32),
        b1=0.1 * rng.standard_normal(16).astype(np.float32),
        w2=0.3 * rng.standard_normal((CLASSES, 16)).astype(np.float32),
        b2=0.1 * rng.standard_normal(CLASSES).astype(np.float32),
    )


def recurrent() -> onnx.ModelProto:
    """x [T, N, 12] and h [1, N, 16] -> y [T, N, 5], as PyTorch exports a recurrent layer."""
    rng = np.random.default_rng(6)
    return build(
        """(float[T, N, 12] x, float[1, N, 16] h) => (float[T, N, 5] y) {
            all, last = GRU<hidden_size=16>(x, w, r, , , h)
            steps = Squeeze(all, axis)
            z = MatMul(steps, head)
            y = Add(z, bias)
        }""",
        axis=np.array([1]),
        w=0.3 * rng.standard_normal((1, 48, FEATURES)).astype(np.float32),
        r=0.3 * rng.standard_normal((1, 48, 16)).astype(np.float32),
        head=0.3 * rng.standard_normal((16, CLASSES)).astype(np.float32),
        bias=0.1 * rng.standard_normal(CLASSES).astype(np.float32),
    )


def spectral() -> onnx.ModelProto:
    """x [80, 30], of channels and time -> y [5]."""
    rng = np.random.default_rng(7)
    return build(
        """(float[80, 30] x) => (float[5] y) {
            one = Unsqueeze(x, front)
            c = Conv<pads=[1, 1]>(one, w1, b1)
            r = Relu(c)
            c2 = Conv<strides=[2]>(r, w2, b2)
            r2 = Relu(c2)
            m = ReduceMean<axes=[0, 2], keepdims=0>(r2)
            y = MatMul(m, head)
        }""",
        front=np.array([0]),
        w1=0.1 * rng.standard_normal((24, 80, 3)).astype(np.float32),
        b1=0.1 * rng.standard_normal(24).astype(np.float32),
        w2=0.1 * rng.standard_normal((16, 24, 3)).astype(np.float32),
        b2=0.1 * rng.standard_normal(16).astype(np.float32),
        head=0.3 * rng.standard_normal((16, CLASSES)).astype(np.float32),
    )


NETWORKS = {"stateful": stateful, "recurrent": recurrent, "spectral": spectral}


def samples(name: str, count: int = SAMPLES) -> dict[str, np.ndarray]:
    """Arrays with an axis of samples before the network's own; `gain` is the same for all."""
    rng = np.random.default_rng(8)
    shapes = {
        "stateful": {"x": (1, FEATURES), "state": (2, 1, 16)},
        "recurrent": {"x": (7, 2, FEATURES), "h": (1, 2, 16)},
        "spectral": {"x": (80, 30)},
    }[name]
    arrays = {key: rng.standard_normal((count, *shape)).astype(np.float32) for key, shape in shapes.items()}
    return arrays | ({"gain": np.array(1.5, np.float32)} if name == "stateful" else {})


def call(name: str, arrays: dict[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    """What one sample feeds."""
    return {key: array if array.ndim == 0 else array[row] for key, array in arrays.items()}


def written(folder: Path, name: str) -> tuple[Path, Path]:
    """(the model's file, its data's)."""
    onnx.save(NETWORKS[name](), folder / "model.onnx")
    np.savez(folder / "data.npz", **samples(name))
    return folder / "model.onnx", folder / "data.npz"
