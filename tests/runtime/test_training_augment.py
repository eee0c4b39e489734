"""Augmentation and precision: what the network sees in training, and what the options refuse."""

from collections.abc import Iterator

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import PassError
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
from onnx_lathe.runtime.training.loop.augment import Augmentation
from tests.support.builders import build
from tests.support.training import Points, model, options, updated

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import GraphModule  # noqa: E402

IMAGES = np.random.default_rng(3).random((256, 2, 5, 7), np.float32) + 1


def moved(image: np.ndarray, down: int, right: int, mirrored: bool) -> np.ndarray:
    """[C, H, W], one pixel at a time."""
    result = np.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[:, row, column] = image[:, row - down, column - right]
    return result[:, :, ::-1] if mirrored else result


@pytest.mark.parametrize("shift, flip", [(2, False), (0, True), (1, True)])
def test_each_sample_is_moved_and_mirrored_by_itself(shift: int, flip: bool) -> None:
    seen = Augmentation(shift, flip, np.random.default_rng(0))(Batch({"x": IMAGES})).inputs["x"]
    ways = [
        (d, r, m)
        for d in range(-shift, shift + 1)
        for r in range(-shift, shift + 1)
        for m in ((False, True) if flip else (False,))
    ]
    found = [
        next(way for way in ways if np.array_equal(moved(image, *way), one))
        for image, one in zip(IMAGES, seen, strict=True)
    ]
    assert set(found) == set(ways), "256 samples of at most 25 ways"
    assert seen.dtype == np.float32


def test_channels_may_come_last() -> None:
    last = np.moveaxis(IMAGES[:, :1], 1, 3)
    one, other = (
        Augmentation(2, True, np.random.default_rng(0))(Batch({"x": images})).inputs["x"]
        for images in (IMAGES[:, :1], last)
    )
    np.testing.assert_array_equal(np.moveaxis(one, 1, 3), other)


def test_inputs_move_together_and_what_is_no_image_stays() -> None:
    batch = Batch({"left": IMAGES, "right": IMAGES.copy(), "age": np.arange(256)}, labels=np.arange(256))
    seen = Augmentation(2, True, np.random.default_rng(0))(batch)
    np.testing.assert_array_equal(seen.inputs["left"], seen.inputs["right"])
    np.testing.assert_array_equal(seen.inputs["age"], np.arange(256))
    np.testing.assert_array_equal(seen.labels, np.arange(256))
    assert (seen.inputs["left"] != IMAGES).any()
    assert (batch.inputs["right"] == IMAGES).all(), "the source's own array is not written to"


@pytest.mark.parametrize("changes", [{"shift": 1}, {"flip": True}])
def test_a_model_without_images_is_refused(changes: dict[str, object]) -> None:
    message = (
        r"shift and flip move images \[N, C, H, W\], but the model's input is 'x' \[N, 6\]; leave them out"
    )
    with pytest.raises(PassError, match=message):
        TorchTrainer(TrainingSetup(Points())).train(model(), options(**changes))


class Pictures(DataSource):
    """Bright at one place per class, of 4."""

    labelled, fingerprint, description = True, "pictures", "pictures"

    def __init__(self, count: int = 256) -> None:
        generator = np.random.default_rng(0)
        self.labels, self.count = generator.integers(0, 4, count), count
        self.images = generator.random((count, 1, 6, 6), np.float32)
        self.images[np.arange(count), 0, 1 + 2 * (self.labels // 2), 1 + 2 * (self.labels % 2)] += 3

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        order = (
            np.arange(self.count)
            if shuffle_seed is None
            else np.random.default_rng(shuffle_seed).permutation(self.count)
        )
        for start in range(0, self.count, size):
            rows = order[start : start + size]
            yield Batch({"x": self.images[rows]}, self.labels[rows])


def convolutional() -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    text = "(float[n, 1, 6, 6] x) => (float[n, 4] y) { c = Conv(x, w, b)  h = Relu(c)  f = Flatten(h)  y = Gemm(f, v) }"
    shapes = {"w": (4, 1, 3, 3), "b": (4,), "v": (64, 4)}
    return build(
        text,
        **{name: 0.3 * generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
    )


def test_an_image_that_would_move_out_of_sight_is_refused() -> None:
    with pytest.raises(
        PassError, match="shift=6 moves input 'x' out of sight, it is 6 pixels wide; give a smaller shift"
    ):
        TorchTrainer(TrainingSetup(Pictures())).train(convolutional(), options(shift=6))


def test_student_and_teacher_see_the_same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    forward = GraphModule.forward

    def noted(self: GraphModule, **feeds: torch.Tensor) -> torch.Tensor:
        seen.append(feeds["x"].numpy(force=True).tobytes())
        return forward(self, **feeds)

    trainer = TorchTrainer(TrainingSetup(Pictures(), convolutional()))
    monkeypatch.setattr(GraphModule, "forward", noted)
    trainer.train(convolutional(), options(epochs=2, batch=64, shift=1, flip=True))
    steps = seen[-16:]
    assert steps[0::2] == steps[1::2]
    plain = {
        part.inputs["x"].tobytes()
        for epoch in range(2)
        for part in Pictures().batches(64, shuffle_seed=epoch)
    }
    assert len(set(steps)) == 8
    assert not plain & set(steps)


def test_augmentation_is_repeated_by_its_seed_and_changes_what_is_learned() -> None:
    def trained(**changes: object) -> bytes:
        return (
            TorchTrainer(TrainingSetup(Pictures()))
            .train(convolutional(), options(epochs=1, **changes))
            .values["w"]
            .tobytes()
        )

    assert trained(shift=1) == trained(shift=1)
    assert len({trained(), trained(shift=1), trained(shift=1, seed=1), trained(flip=True)}) == 4


def test_bfloat16_learns_the_same_and_returns_float32() -> None:
    changes = {"epochs": 10, "rate": 0.01, "batch": 32, "distill": 0.0}
    exact = TorchTrainer(TrainingSetup(Pictures())).train(convolutional(), options(**changes))
    half = TorchTrainer(TrainingSetup(Pictures())).train(
        convolutional(), options(**changes, precision="bfloat16")
    )
    assert half.values["w"].dtype == np.float32
    assert (half.values["w"] != exact.values["w"]).any()
    assert half.metrics["last_loss"] < 0.2 * half.metrics["first_loss"]
    assert half.metrics["last_loss"] == pytest.approx(exact.metrics["last_loss"], rel=0.1)
    onnx.checker.check_model(updated(convolutional(), half.values), full_check=True)


def test_a_model_that_does_not_run_in_bfloat16_is_refused() -> None:
    text = "(float[2, 1, 6, 6] x) => (float[2, 1, 6, 6] y) { c = Conv <pads = [1, 1, 1, 1]> (x, w)  y = ScatterElements(x, i, c) }"
    start = build(text, w=np.ones((1, 1, 3, 3), np.float32), i=np.zeros((2, 1, 6, 6), np.int64))
    trainer = TorchTrainer(TrainingSetup(Pictures(2), start))
    with pytest.raises(
        PassError, match="PyTorch cannot run the model in bfloat16; leave precision out: scatter"
    ):
        trainer.train(start, options(precision="bfloat16", distill=1.0))


def test_bfloat16_is_used_in_training_and_not_to_compare_with_onnx_runtime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    types: list[tuple[bool, torch.dtype]] = []
    forward = GraphModule.forward

    def noted(self: GraphModule, *inputs: torch.Tensor, **feeds: torch.Tensor) -> torch.Tensor:
        result = forward(self, *inputs, **feeds)
        types.append((torch.is_autocast_enabled("cpu"), result.dtype))
        return result

    monkeypatch.setattr(GraphModule, "forward", noted)
    TorchTrainer(TrainingSetup(Pictures(), convolutional())).train(
        convolutional(), options(epochs=1, batch=256, precision="bfloat16")
    )
    assert types[:2] == [(False, torch.float32)] * 2
    assert types[2:] == [(True, torch.float32)] * 3  # a look at the outputs, then teacher and student
