"""LiteRT (TensorFlow Lite), for Android and elsewhere: a `.tflite`, written from the lowered graph and tried in its
interpreter.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as dataclass
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import TargetError, first_few
from onnx_lathe.placement import PHONE
from onnx_lathe.runtime.data import preprocess
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.targets.bundle import classes
from onnx_lathe.runtime.targets.core.base import (
    NOT_QUANTIZED,
    Artifact,
    LayerVerdict,
    Progress,
    Reopened,
    Target,
    layers_of,
    option,
    own_kernels,
)
from onnx_lathe.runtime.targets.core.branches import decided
from onnx_lathe.runtime.targets.core.registry import register
from onnx_lathe.runtime.targets.core.sizes import from_data, parse, sizes_of
from onnx_lathe.runtime.targets.litert import codebooks, verify
from onnx_lathe.runtime.targets.litert.bundle.described import written as written_file
from onnx_lathe.runtime.targets.litert.bundle.writing import bundle
from onnx_lathe.runtime.targets.litert.contents import contents_of
from onnx_lathe.runtime.targets.litert.file import Contents, pack
from onnx_lathe.runtime.targets.litert.package import schema
from onnx_lathe.runtime.targets.litert.reopen import reopen
from onnx_lathe.runtime.targets.litert.session import Session, open_file
from onnx_lathe.runtime.targets.litert.sizing import (
    OPEN,
    Fitted,
    as_given,
    fitted,
    fixed,
    of_the_batch,
    sizes_given,
    with_open_batch,
)

STORAGES, LAYOUTS, ENDS, BATCHES, STEMS, VERIFIED = (
    ("float32", "float16"),
    ("keep", "nhwc"),
    ("float", "int8"),
    ("open", "one"),
    ("keep", "fold"),
    ("outputs", "tensors"),
)
FILE = "model.tflite"
ALONE = "which of its branches runs depends on the batch, and batch=one fixes that"


@register
class LiteRT(Target):
    name = "litert"
    help = "a .tflite for LiteRT (TensorFlow Lite), for Android: float, float16 weights, and INT8 equal to the step"
    outputs = (FILE, "model.litert.*")
    packages = ("ai-edge-litert", "flatbuffers")
    lowering = "litert"
    placement = PHONE
    opens = True
    suffixes = (".tflite",)

    @dataclass(frozen=True)
    class Config(Target.Config):
        storage: str = option(
            "float32",
            "how float weights are stored; float16 is half the file, decoded once at load",
            choices=STORAGES,
        )
        layout: str = option(
            "keep",
            "the axes of inputs and outputs that are images: as the model has them, at the cost of a Transpose each, or with channels last, as a camera gives them",
            choices=LAYOUTS,
        )
        io: str = option(
            "float",
            "the type of inputs and outputs of an INT8 network; int8 spares the conversion",
            choices=ENDS,
        )
        batch: str = option(
            "open",
            "whether the batch stays open where the model has it open; one lets XNNPACK take operators that it takes of fixed sizes alone",
            choices=BATCHES,
        )
        stem: str = option(
            "keep",
            "an INT8 convolution that strides over few channels, such as an image's; fold makes neighbouring pixels its channels, which takes processors that multiply 8 integers at a time (x86, ARM with i8mm) less time",
            choices=STEMS,
        )
        shapes: dict[str, int | str] = field(
            default_factory=dict,
            metadata={
                "help": "input -> the size that it is built for, such as 1x3x224x224; two with a colon between: sizes that differ stay open",
                "unit": "",
            },
        )
        preprocess: str = option(
            "",
            "how pixels become input, as --preprocess says it, for the file's metadata and the examples; a run's own if it has one",
        )
        verify: str = option(
            "outputs",
            "what is compared with ONNX Runtime besides what INT8 operators write",
            choices=VERIFIED,
        )
        classes: str = option("", classes.HELP)
        bundle: bool = option(
            True,
            "Kotlin and C++ examples, a README for the application's developer, and stored examples to verify with",
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            preprocess.parse(self.preprocess)
            parse(self.shapes)

    def available(self) -> str | None:
        try:
            schema()
        except TargetError as error:
            return str(error)
        return None

    def refusals(self, model: onnx.ModelProto, options: Any) -> list[tuple[str, str, str]]:
        refused = list(_converted(model, options).conversion.refused)
        fix = fixed(model, options.shapes, refused)
        alone = f": {ALONE}" if options.batch == "open" and of_the_batch(model, options.shapes) else ""
        return [
            (node, op, reason + (fix if OPEN in reason else "") + (alone if op == "If" else ""))
            for node, op, reason in refused
        ]

    def check(self, model: onnx.ModelProto, options: Any) -> list[tuple[str, str]]:
        return own_kernels(model, "LiteRT")

    def layers(self, model: onnx.ModelProto, options: Any = None) -> list[LayerVerdict]:
        made = {name: node for node in model.graph.node for name in node.output}
        found = []
        for index, node in layers_of(model).items():
            decoder = made.get(node.input[1])
            int8 = decoder is not None and decoder.op_type == "DequantizeLinear" and _reads_stored(made, node)
            name = node.name or f"{node.op_type}_{index}"
            found.append(LayerVerdict(name, node.op_type, int8, "" if int8 else NOT_QUANTIZED))
        return found

    def lowering_options(
        self, options: Any, model: onnx.ModelProto, known: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        sizes = sizes_given(model, options.shapes)
        if options.batch == "open":
            sizes = with_open_batch(model, sizes)
        found = decided(model, sizes.first, sizes.second)
        return {"layout": options.layout, "branches": {**known.get("branches", {}), **found}}

    def fed(self, options: Any, preprocess: str | None) -> Any:
        return options if options.preprocess or not preprocess else replace(options, preprocess=preprocess)

    def named(self, options: Any, names: Sequence[str]) -> Any:
        return options if options.classes or not names else replace(options, classes=classes.joined(names))

    def fitted(
        self,
        model: onnx.ModelProto,
        options: Any,
        shapes: Mapping[str, tuple[int, ...]],
        per_call: bool = False,
    ) -> tuple[Any, list[str]]:
        known = from_data(model, parse(options.shapes), shapes, per_call)
        sizes = sizes_of(model, parse(options.shapes) | known)
        return replace(options, shapes={**options.shapes, **{name: sizes.text(name) for name in known}}), []

    def settled(self, model: onnx.ModelProto, options: Any, fitted: Any) -> tuple[Any, list[str]]:
        """Sizes of the data that cannot stay open are fixed at them; so is a batch that decides which branch runs."""
        branches = of_the_batch(model, fitted.shapes) if options.batch == "open" else []
        if branches:
            config, notes = self.settled(model, replace(options, batch="one"), replace(fitted, batch="one"))
            return config, [f"the batch is fixed at 1: it decides the branch on '{branches[0]}'", *notes]
        known = [name for name in fitted.shapes if name not in options.shapes]
        sizes = sizes_given(model, fitted.shapes)
        if not known or not sizes.open:
            return fitted, []
        try:
            reasons = [one for one in _converted(model, fitted).conversion.refused if OPEN in one[2]]
            reason = f"of node '{reasons[0][0]}' ({reasons[0][1]}) {reasons[0][2]}" if reasons else ""
        except TargetError as error:
            reason = str(error)
        if not reason:
            return fitted, []
        texts = as_given(model, sizes.fixed())
        told = ", ".join(f"{name} {texts[name]}" for name in known)
        return replace(fitted, shapes=texts), [f"built for inputs of {told}, as the data has them: {reason}"]

    def build(self, model: Path, directory: Path, options: Any, progress: Progress) -> Artifact:
        proto = model_file.load(model)
        found = _converted(proto, options)
        written = found.conversion
        if written.refused:
            raise TargetError(_refusal(written.refused, fixed(proto, options.shapes, list(written.refused))))
        progress("writing the .tflite file")
        path = directory / FILE
        contents = contents_of(proto, written, options)
        content = pack(contents)
        with replacing(path) as file:
            file.write(content)
        net = written.network
        stored = [one for one in net.operators if net.tensors[one.outputs[0]].type in ("INT8", "INT16")]
        details = {
            "operators": len(net.operators),
            "int8_operators": len(stored),
            "transposes": Counter(one.code for one in net.operators)["TRANSPOSE"],
            "open_batch": found.batch,
            "open_sizes": found.sizes.open,
        }
        beside = bundle(written_file(path, proto, options)) if options.bundle else ()
        return Artifact(
            (path, *beside), len(content), details, (*_notes(found), *_unstored(contents, options))
        )

    def verify(
        self,
        model: Path,
        artifact: Artifact,
        options: Any,
        feeds: Mapping[str, np.ndarray],
        progress: Progress,
        canonical: onnx.ModelProto,
    ) -> Mapping[str, Any]:
        progress("comparing LiteRT with ONNX Runtime")
        proto = model_file.load(model)
        found = _converted(proto, options)
        path = artifact.paths[0]
        details, examples = verify.verified(proto, found, path, feeds, options)
        if options.bundle:
            bundle(written_file(path, proto, options, details["verified"], examples))
        if expanded := codebooks.note(canonical, artifact.size_bytes):
            details["notes"] = [expanded, *details.get("notes", [])]
        return details

    def open(self, artifact: Artifact, options: Any, threads: int = 1) -> Session | None:
        return open_file(artifact.paths[0], threads)

    def reopen(self, path: Path, threads: int = 1) -> Reopened:
        return reopen(path, threads)


def _reads_stored(made: Mapping[str, onnx.NodeProto], node: onnx.NodeProto) -> bool:
    """Behind Transposes, too, which the lowering puts around a convolution."""
    source = made.get(node.input[0])
    while source is not None and source.op_type == "Transpose":
        source = made.get(source.input[0])
    return source is not None and source.op_type == "DequantizeLinear"


def _converted(model: onnx.ModelProto, options: Any) -> Fitted:
    return fitted(
        model, options.shapes, options.storage == "float16", options.batch == "open", options.stem == "fold"
    )


def _notes(found: Fitted) -> tuple[str, ...]:
    notes = []
    if found.reason:
        notes.append(f"the batch is fixed at 1: {found.reason}")
    if beyond := found.conversion.network.beyond_half:
        notes.append(f"{first_few(beyond)} stay float32: their values pass the largest of float16, 65504")
    return tuple(notes)


def _unstored(contents: Contents, options: Any) -> tuple[str, ...]:
    """Of inputs and outputs that were asked for in integers, and stay float."""
    ends = (*contents.inputs, *contents.outputs) if options.io == "int8" else ()
    floats = [name for name, place in ends if contents.tensors[place].type == "FLOAT32"]
    if not floats:
        return ()
    return (
        f"io=int8 leaves {first_few(floats)} in float32: nothing next to them computes on integers alone",
    )


def _refusal(refused: Any, fix: str) -> str:
    reasons: dict[str, list[str]] = {}
    for node, op, reason in refused:
        reasons.setdefault(f"({op}) {reason}", []).append(node)
    listed = "; ".join(f"{first_few(nodes)} {reason}" for reason, nodes in list(reasons.items())[:3])
    more = f"; and {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
    return f"LiteRT cannot compute: {listed}{more}{fix}; optimize check MODEL --target litert lists all"
