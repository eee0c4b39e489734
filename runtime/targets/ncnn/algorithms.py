"""The algorithm of each convolution, as far as ncnn's own kernels can be made to take another than they would.

    31=64                    a layer without Winograd, on every processor, in float and in INT8
    31=1                     sums in float32 where the others sum in half precision; there is no Winograd then
    -23330=4,3,w,h,c         the layer's result as it is: x86 kernels look up their tile by it (x86_hints.py)

A layer also looks at the hint of what it reads. Where it is to stay with the choice it makes without one, a Split
with one result stands in between: it hands on the blob without its shape, and copies nothing.

No convolution is kept from storage in half (31=2): it would read its blob of 16 bits as float32, since what converts blobs
in front of a layer goes by the layer's own options, too (src/net.cpp, forward_layer, do_forward_layer).
Source: ncnn, src/net.cpp, load_param (30: three or four numbers behind the dimensions are read; 31: featmask);
src/layer/x86/convolution_x86.cpp, create_pipeline; src/layer/arm/convolution_arm_asimdhp.cpp, create_pipeline_fp16s
(Winograd asks for arithmetic in float16), forward_fp16s.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnx_lathe import metadata
from onnx_lathe.kernels import DIRECT, NAMES, Profile
from onnx_lathe.runtime.targets.core.node import node_name
from onnx_lathe.runtime.targets.ncnn.dialect import Layer, plain_name

HINT, MASK = 30, 31
NO_WINOGRAD = 64
NO_HALF_ARITHMETIC = 1
TAPS = 3
INT8_TERM = 8
OPEN_SIZE = "depends on the size of the input"

Sizes = Sequence[int | None]
Notes = list[tuple[str, str]]
"""(node, reason)."""


@dataclass(frozen=True)
class Convolution:
    """What decides about a layer of 3 x 3: its channels, and the size of its result, None where that is open."""

    inputs: int
    outputs: int
    height: int | None
    width: int | None
    int8: bool

    def own(self, profile: Profile) -> int:
        return profile.own(self.inputs, self.outputs, self.int8)

    def by_hint(self, profile: Profile) -> int | None:
        """None where the size is not known."""
        if self.height is None or self.width is None:
            return None
        return profile.by_hint(self.inputs, self.outputs, self.height, self.width, self.int8)

    @property
    def shape(self) -> list[int]:
        """The hint: a result of three dimensions."""
        return [3, self.width or 0, self.height or 0, self.outputs]


def wanted(nodes: Sequence[onnx.NodeProto]) -> dict[str, int]:
    """Conv node -> m of what `lathe.conv_algorithm` says; without nodes whose word is none."""
    words = {name: m for m, name in NAMES.items()}
    found = {}
    for index, node in enumerate(nodes):
        said = {entry.key: entry.value for entry in node.metadata_props}.get(metadata.CONV_ALGORITHM)
        if node.op_type == "Conv" and not node.domain and said in words:
            found[node_name(node, index)] = words[said]
    return found


def summed_in_float32(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Conv nodes whose `lathe.conv_precision` says float32."""
    return {
        node_name(node, index)
        for index, node in enumerate(nodes)
        for entry in node.metadata_props
        if (entry.key, entry.value) == (metadata.CONV_PRECISION, "float32")
    }


def count_chosen(layers: Iterable[Layer]) -> int:
    """Of convolutions with another algorithm than ncnn's own choice, or a hint for it."""
    return sum(
        layer.type.startswith("Convolution") and (HINT in layer.params or MASK in layer.params)
        for layer in layers
    )


def convolution(layer: Layer, result: Sizes) -> Convolution | None:
    """What a layer is that has a choice; None for one that has none. `result`: [N, C, H, W]."""
    params = layer.params
    if layer.type != "Convolution":  # of others that a Conv becomes, numbers may be lists
        return None
    taps, steps = {params.get(key) for key in (1, 11)}, {params.get(key, 1) for key in (2, 12, 3, 13)}
    if taps != {TAPS} or steps != {1} or len(result) != 4:
        return None
    outputs, weights = params[0], params[6]
    if not isinstance(outputs, int) or not isinstance(weights, int):
        return None
    return Convolution(weights // (outputs * TAPS * TAPS), outputs, result[2], result[3], INT8_TERM in params)


def convolutions(
    layers: Iterable[Layer], results: Mapping[str, Sizes]
) -> dict[str, tuple[Layer, Convolution]]:
    """Conv node -> the layer that computes it, of those that have a choice. `results`: sizes by Conv node."""
    found = {}
    for layer in layers:
        for name in layer.nodes:
            if name in results and (one := convolution(layer, results[name])) is not None:
                found[name] = (layer, one)
    return found


def follow(
    layers: list[Layer],
    choices: Mapping[str, int],
    results: Mapping[str, Sizes],
    profile: Profile,
    title: str,
    float32: Collection[str] = (),
) -> Notes:
    """Writes the choices into the layers, last of all, and puts a Split where a hint is not to be seen. Returns the
    choices that ncnn cannot be made to take. `title`: what the profile is called; `float32`: nodes that are to sum
    so.
    """
    notes: Notes = []
    found = convolutions(layers, results)
    for name, m in choices.items():
        if name not in found:
            notes.append(
                (
                    name,
                    f"{NAMES[m]} is chosen, and it becomes no convolution of 3 x 3 in ncnn that has a choice",
                )
            )
            continue
        layer, one = found[name]
        wide = name in float32 and profile.sums is not None and not one.int8
        if reason := _sum_wide(layer, m) if wide else _write(layer, one, m, profile, title):
            notes.append((name, reason))
    _shield(layers, [layer for layer, _ in found.values() if HINT not in layer.params], found, profile)
    return notes


def _sum_wide(layer: Layer, m: int) -> str | None:
    """Returns why it is not the algorithm that was chosen, if it is not."""
    layer.params[MASK] = NO_HALF_ARITHMETIC
    if m == DIRECT:
        return None
    return f"{NAMES[m]} is chosen, and ncnn sums in float32 by direct convolution alone: it stays with that"


def _write(layer: Layer, one: Convolution, m: int, profile: Profile, title: str) -> str | None:
    """Returns why the layer stays with its own choice, if it must."""
    own, hint = one.own(profile), one.by_hint(profile)
    if m == own:
        return None
    if m == DIRECT:
        layer.params[MASK] = NO_WINOGRAD
        return None
    if hint == m:
        layer.params[HINT] = one.shape
        return None
    if hint is None and profile.hinted is not None and not one.int8:
        return f"{NAMES[m]} is chosen, which takes a hint of its size, and that {OPEN_SIZE}: it stays with {NAMES[own]}"
    able = " or ".join(NAMES[other] for other in dict.fromkeys((own, hint or own, DIRECT)))
    return f"{NAMES[m]} is chosen, and ncnn's {title} kernels take {able} here: it stays with {NAMES[own]}"


def _shield(
    layers: list[Layer],
    plain: Sequence[Layer],
    found: Mapping[str, tuple[Layer, Convolution]],
    profile: Profile,
) -> None:
    """A Split in front of each plain layer that would take another tile, because it reads a blob with a hint."""
    hinted = {top for layer in layers if HINT in layer.params for top in layer.tops}
    known = {id(layer): one for layer, one in found.values()}
    taken = {name for layer in layers for name in (*layer.tops, layer.name)}
    for layer in plain:
        one = known[id(layer)]
        if layer.bottoms[0] not in hinted or MASK in layer.params or one.by_hint(profile) == one.own(profile):
            continue
        name = _free(f"{layer.bottoms[0]}_plain", taken)
        taken.add(name)
        layers.insert(
            layers.index(layer), Layer("Split", name, [layer.bottoms[0]], [name], nodes=layer.nodes)
        )
        layer.bottoms[0] = name


def _free(name: str, taken: set[str]) -> str:
    found, number = plain_name(name), 1
    while found in taken:
        number += 1
        found = plain_name(f"{name}_{number}")
    return found
