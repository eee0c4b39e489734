"""The last touches to a list of layers: what nobody reads goes, small layers become one (fusing.py),
a blob that several layers read is handed out by a Split, outputs have the model's names, and what hands on integers
keeps their bits.

ncnn releases a blob when it has been read, so that each blob may have one reader alone.
"""

from collections.abc import Mapping, Sequence, Set

from onnx_lathe.runtime.targets.ncnn.dialect import Layer, plain_name, used
from onnx_lathe.runtime.targets.ncnn.fusing import fuse
from onnx_lathe.runtime.targets.ncnn.requantize import requantize

FEATURES = 31
WHOLE = 7
"""No arithmetic in float16 (1), no storage in float16 (2) or bfloat16 (4)."""


def finish(
    layers: Sequence[Layer], outputs: Mapping[str, str], pointing: Set[str] = frozenset()
) -> tuple[list[Layer], dict[str, str]]:
    """(the layers as they are written, output -> blob). `outputs`: name in the model -> blob; `pointing`: blobs of
    inputs with integers of 32 bits.
    """
    wanted = set(outputs.values())
    fused = fuse(_alive(list(layers), wanted), wanted)
    kept = _alive(fused, wanted)
    requantize(kept, wanted)
    written, names = _split(kept, outputs)
    _keep_bits(written, pointing)
    return written, names


def _keep_bits(layers: Sequence[Layer], pointing: Set[str]) -> None:
    """Tells layers that hand integers on to leave them as they are: where a layer can store half precision, ncnn
    casts every blob of 32 bits before it as if it were floats, and small integers become 0 (src/net.cpp,
    convert_layout). Embed, which reads them, has no such storage.
    """
    held = set(pointing)
    for layer in layers:
        if held.intersection(layer.bottoms) and layer.type != "Embed":
            layer.params = layer.params | {FEATURES: WHOLE}
            held.update(layer.tops)


def _alive(layers: list[Layer], wanted: set[str]) -> list[Layer]:
    """Without layers that no output depends on; inputs stay."""
    read, kept = set(wanted), []
    for layer in reversed(layers):
        if layer.type == "Input" or read.intersection(layer.tops):
            read.update(layer.bottoms)
            kept.append(layer)
    return kept[::-1]


def _split(layers: list[Layer], outputs: Mapping[str, str]) -> tuple[list[Layer], dict[str, str]]:
    """Each blob gets one reader; an output counts as one, and keeps its name."""
    readers = used(layers)
    taken = {name for layer in layers for name in (*layer.tops, layer.name)}
    copies: dict[str, list[str]] = {}
    written: list[Layer] = []
    names: dict[str, str] = {}
    by_blob: dict[str, list[str]] = {}
    for name, blob in outputs.items():
        by_blob.setdefault(blob, []).append(name)
    for layer in layers:
        layer.bottoms = [copies[name].pop(0) if name in copies else name for name in layer.bottoms]
        written.append(layer)
        for place, top in enumerate(list(layer.tops)):
            seen = by_blob.get(top, [])
            if readers.get(top, 0) + len(seen) < 2 and not (layer.type == "Input" and seen):
                if seen and plain_name(seen[0]) not in taken:
                    layer.tops[place] = plain_name(seen[0])
                    taken.add(layer.tops[place])
                names |= dict.fromkeys(seen, layer.tops[place])
                continue
            own = [_free(plain_name(name), taken - {top}) for name in seen]
            names |= dict(zip(seen, own, strict=True))
            source = top
            if top in own:
                if layer.type == "Input":
                    copy = own.index(top)
                    own[copy] = names[seen[copy]] = _free(f"{top}_out", taken)
                else:
                    source = layer.tops[place] = _free(f"{top}_split", taken)
            taken.update([source, *own])
            shares = [_free(f"{top}_split_{number}", taken) for number in range(readers.get(top, 0))]
            taken.update(shares)
            split = _free(f"split_{top}", taken)
            taken.add(split)
            written.append(Layer("Split", split, [source], [*shares, *own]))
            copies[top] = shares
    return written, names


def _free(name: str, taken: set[str]) -> str:
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found
