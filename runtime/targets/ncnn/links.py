"""Which layer writes a blob, and which read it: a list of layers while some are replaced by others."""

from collections.abc import Sequence

import numpy as np

from onnx_lathe.runtime.targets.ncnn.dialect import Layer


class Links:
    """Layers in their order. `outputs`: blobs that are read from outside."""

    def __init__(self, layers: Sequence[Layer], outputs: set[str]) -> None:
        self._layers = {id(layer): layer for layer in layers}
        self._outputs = outputs
        self._writers = {top: layer for layer in layers for top in layer.tops}
        self._readers: dict[str, list[Layer]] = {}
        for layer in layers:
            self._note(layer)

    def __contains__(self, layer: Layer) -> bool:
        return id(layer) in self._layers

    def layers(self) -> list[Layer]:
        return list(self._layers.values())

    def writer(self, blob: str) -> Layer | None:
        return self._writers.get(blob)

    def made_by(self, blob: str, type: str) -> Layer | None:
        """The layer that writes the blob, if it is of this type."""
        layer = self._writers.get(blob)
        return layer if layer is not None and layer.type == type else None

    def constant(self, blob: str) -> np.ndarray | None:
        """The values of a constant blob, in its shape."""
        layer = self.made_by(blob, "MemoryData")
        if layer is None:
            return None
        found = [layer.params.get(key) for key in (2, 11, 1, 0)]
        sizes = [size for size in found if isinstance(size, int)]
        return layer.weights[0].stored.floats().reshape(sizes)

    def is_closed(self, inside: Sequence[Layer], last: Layer) -> bool:
        """Whether nothing but these layers and the last one reads what they write."""
        ids = {id(layer) for layer in (*inside, last)}
        tops = [top for layer in inside for top in layer.tops]
        return not self._outputs.intersection(tops) and all(
            id(reader) in ids for top in tops for reader in self._readers.get(top, ())
        )

    def put(self, layers: Sequence[Layer], last: Layer, removed: Sequence[Layer]) -> None:
        """`layers` in the place of `last`, without those that are `removed`."""
        for old in (*removed, last):
            for blob in set(old.bottoms):
                self._readers[blob] = [reader for reader in self._readers[blob] if reader is not old]
            for top in old.tops:
                del self._writers[top]
        gone, kept = {id(old) for old in removed}, dict[int, Layer]()
        for key, layer in self._layers.items():
            if key == id(last):
                kept |= {id(new): new for new in layers}
            elif key not in gone:
                kept[key] = layer
        self._layers = kept
        for layer in layers:
            self._writers |= dict.fromkeys(layer.tops, layer)
            self._note(layer)

    def _note(self, layer: Layer) -> None:
        for blob in layer.bottoms:
            self._readers.setdefault(blob, []).append(layer)
