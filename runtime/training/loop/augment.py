"""Random translation and mirroring of images in training, so that a network sees each picture in several
places.

Source: Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
NeurIPS 2012, section 4.1; with zeros outside: He et al., "Deep Residual Learning for Image Recognition",
CVPR 2016, section 4.2.
"""

from dataclasses import dataclass, replace

import numpy as np

from onnx_lathe.errors import PassError
from onnx_lathe.runtime.data import Batch, InputSpec
from onnx_lathe.runtime.data.preprocess import channel_axis


@dataclass(frozen=True)
class Augmentation:
    """Moves every sample of a batch by up to `shift` pixels in both directions, and mirrors half of the
    samples if `flip`.

    What comes in from outside is 0: the mean of the pixels where preprocessing subtracts it, black where it
    only scales. Applies to inputs [N, C, H, W] and [N, H, W, C]; several of them move together, sample by
    sample. Each call draws anew from `random`.
    """

    shift: int
    flip: bool
    random: np.random.Generator

    def __call__(self, batch: Batch) -> Batch:
        if not self.shift and not self.flip:
            return batch
        # Drawn for the samples of all workers, so that they are moved as one worker would move them.
        first = 0 if batch.place is None else batch.place.first
        mine = slice(first, first + batch.count)
        places = self.random.integers(0, 2 * self.shift, (2, batch.total), endpoint=True)[:, mine]
        mirrored = self.random.random(batch.total)[mine] < (0.5 if self.flip else 0.0)
        inputs = {
            name: self._move(array, places, mirrored) if array.ndim == 4 else array
            for name, array in batch.inputs.items()
        }
        return replace(batch, inputs=inputs)

    def check(self, batch: Batch) -> None:
        """Raises PassError if no input is an image, or if a shift would move one out of sight."""
        if not self.shift and not self.flip:
            return
        images = {name: array for name, array in batch.inputs.items() if array.ndim == 4}
        if not images:
            shapes = ", ".join(
                f"'{name}' [N{''.join(f', {size}' for size in array.shape[1:])}]"
                for name, array in batch.inputs.items()
            )
            raise PassError(
                f"shift and flip move images [N, C, H, W], but the model's input is {shapes}; leave them out"
            )
        for name, array in images.items():
            side = min(_channels_first(array).shape[2:])
            if self.shift >= side:
                raise PassError(
                    f"shift={self.shift} moves input '{name}' out of sight, it is {side} pixels wide; give a smaller shift"
                )

    def _move(self, images: np.ndarray, places: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """A copy of the images, cut out of a wide frame of zeros at `places`: int [2, N], rows and columns,
        `shift` being the middle.
        """
        planes, shift = _channels_first(images), self.shift
        framed = np.pad(planes, ((0, 0), (0, 0), (shift, shift), (shift, shift)))
        windows = np.lib.stride_tricks.sliding_window_view(framed, planes.shape[2:], axis=(2, 3))
        moved = windows[np.arange(len(images)), :, places[0], places[1]]
        moved[mirrored] = moved[mirrored, ..., ::-1]
        return moved if planes is images else np.moveaxis(moved, 1, 3)


def _channels_first(images: np.ndarray) -> np.ndarray:
    """The same memory as [N, C, H, W]."""
    return (
        images if channel_axis(InputSpec("", images.dtype, images.shape)) == 0 else np.moveaxis(images, 3, 1)
    )
