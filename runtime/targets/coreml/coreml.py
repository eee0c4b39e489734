"""Core ML, for iPhone, iPad and Mac: an `.mlpackage`, written from the lowered graph, its weights read back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import TargetError, UsageError, first_few
from onnx_lathe.placement import CANONICAL, Placement
from onnx_lathe.runtime.data import preprocess
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.bundle import classes
from onnx_lathe.runtime.targets.core.base import (
    NOT_QUANTIZED,
    Artifact,
    LayerVerdict,
    Progress,
    Target,
    layers_of,
    option,
    own_kernels,
)
from onnx_lathe.runtime.targets.core.branches import decided
from onnx_lathe.runtime.targets.core.registry import register
from onnx_lathe.runtime.targets.coreml import sizes as sizing
from onnx_lathe.runtime.targets.coreml.beside import examples_of, write_beside
from onnx_lathe.runtime.targets.coreml.choices import image_of, is_quantized, picture, sample
from onnx_lathe.runtime.targets.coreml.convert import Conversion, convert
from onnx_lathe.runtime.targets.coreml.form import DEPLOYMENTS, PRECISIONS, Form
from onnx_lathe.runtime.targets.coreml.image import LAYOUTS
from onnx_lathe.runtime.targets.coreml.package import missing
from onnx_lathe.runtime.targets.coreml.sizes import BATCH, Sizes, batch_range, parse_shapes, sizes_of
from onnx_lathe.runtime.targets.coreml.writing import files_of, forms_of, weight_bytes, write
from onnx_lathe.runtime.targets.ncnn.halves import beyond_half
from onnx_lathe.version import VERSION

PACKAGE = "model.coreml.mlpackage"
IMAGES = ("none", *LAYOUTS)
SIZE = "on the size of the input"
"""Part of each reason that fixed sizes would do away with."""
NOT_RUN = "written, its weights read back bit for bit; not run here: Core ML predicts on macOS alone"


@register
class CoreML(Target):
    name = "coreml"
    outputs = ("model.coreml.*",)
    packages = ("coremltools",)
    help = "Core ML's .mlpackage, for iPhone, iPad and Mac: codebooks, zeros and INT8 in its own forms"
    lowering = "coreml"
    placement = CANONICAL

    @dataclass(frozen=True)
    class Config(Target.Config):
        deployment: str = option(
            "iOS17",
            "the oldest system it is for; INT8 activations need iOS17, weights of 3 and 4 bits with scales iOS18",
            choices=tuple(DEPLOYMENTS),
        )
        precision: str = option(
            "float32",
            "what the program computes in; the Neural Engine takes float16 alone",
            choices=PRECISIONS,
        )
        batch: int | str = option(
            BATCH,
            "how many samples at once, where the model leaves that open: one number, or from one to another",
        )
        shapes: dict[str, int | str] = field(
            default_factory=dict,
            metadata={
                "help": "input -> the shape that it is built for, such as 1x3x224x224; two with a colon between: sizes that differ stay open",
                "unit": "",
            },
        )
        image: str = option(
            "none",
            "the order of channels of a picture that the input takes, which preprocess scales; none: the input is a tensor",
            choices=IMAGES,
        )
        preprocess: str = option(
            "", "how pixels become input, as --preprocess says it; a run's own if it has one"
        )
        classes: str = option("", classes.HELP)
        bundle: bool = option(
            True,
            "Swift, a README for the application's developer, and stored examples to verify with on a Mac",
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            preprocess.parse(self.preprocess)
            batch = batch_range(self.batch)
            parse_shapes(self.shapes)
            if self.image != "none" and batch not in (batch_range(BATCH), (1, 1)):
                raise UsageError(f"option image: the input takes one picture, not batch={self.batch}")

    def available(self) -> str | None:
        return missing()

    def placed(self, options: Any) -> Placement:
        return self.placement or CANONICAL

    def accepts(self, model: onnx.ModelProto, options: Any) -> None:
        _sizes(model, options)
        if options.image != "none":
            picture(model, options)

    def refusals(self, model: onnx.ModelProto, options: Any) -> list[tuple[str, str, str]]:
        written, sizes = _converted(model, options)
        fix = f"; fix it, such as with {_fixing(sizes)}"
        return [(node, op, reason + (fix if SIZE in reason else "")) for node, op, reason in written.refused]

    def check(self, model: onnx.ModelProto, options: Any) -> list[tuple[str, str]]:
        return own_kernels(model, "Core ML")

    def layers(self, model: onnx.ModelProto, options: Any = None) -> list[LayerVerdict]:
        made = {name: node for node in model.graph.node for name in node.output}
        found = []
        for index, node in layers_of(model).items():
            decoded = [
                one is not None and one.op_type == "DequantizeLinear" for one in map(made.get, node.input[:2])
            ]
            name = node.name or f"{node.op_type}_{index}"
            reason = "" if all(decoded) else "its weight alone is INT8" if decoded[1] else NOT_QUANTIZED
            found.append(LayerVerdict(name, node.op_type, all(decoded), reason))
        return found

    def lowering_options(
        self, options: Any, model: onnx.ModelProto, known: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        sizes = _sizes(model, options)
        found = decided(model, sizes.first, sizes.second() if sizes.open else sizes.first)
        return {"branches": {**known.get("branches", {}), **found}, "pairs": _form(options).quantizes}

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
        batch = _batch(options)
        known = sizing.from_data(model, parse_shapes(options.shapes), shapes, batch, per_call)
        sizes = sizes_of(model, {**parse_shapes(options.shapes), **known}, batch)
        notes = [
            f"built for {name} {sizes.text(name)}: "
            + ("as the data has it" if name in known else "Lathe's own size for what the model leaves open")
            + f"; other sizes: coreml(shapes={{{name}: ...}})"
            for name in (*known, *sizes.assumed)
        ]
        return replace(
            options, shapes={**options.shapes, **{name: sizes.text(name) for name in known}}
        ), notes

    def settled(self, model: onnx.ModelProto, options: Any, fitted: Any) -> tuple[Any, list[str]]:
        """A batch that the model cannot leave open is fixed at one sample."""
        if options.batch != BATCH or not _sizes(model, fitted).open:
            return fitted, []
        reason = _closed_by(model, fitted)
        single = replace(
            fitted, batch="1", shapes={name: _single(str(text)) for name, text in fitted.shapes.items()}
        )
        if not reason or _closed_by(model, single):
            return fitted, []
        return single, [f"built for one sample at a time: {reason}"]

    def build(self, model: Path, directory: Path, options: Any, progress: Progress) -> Artifact:
        """Writes the folder `model.coreml.mlpackage`, whole or not at all, and what lies beside it."""
        proto = model_file.load(model)
        written, sizes = _converted(proto, options)
        if written.refused:
            raise TargetError(_refusal(written, sizes))
        form, package = _form(options), directory / PACKAGE
        progress("writing Core ML's package")
        write(written, form, package, image_of(proto, options), {"com.lathe.version": VERSION})
        details = {
            "operations": len(written.program.functions["main"].operations),
            "weights": forms_of(written.kept),
            "weight_bytes": weight_bytes(package),
            "deployment": options.deployment,
            "precision": options.precision,
            "open_sizes": sizes.open,
            "verified": {"weights": len(written.kept), "run": False},
        }
        beside = write_beside(package, written, options, _choices(details))
        inside = tuple(files_of(package))
        size = sum(path.stat().st_size for path in inside)
        return Artifact((*inside, *beside), size, details, facts=(NOT_RUN,))

    def verify(
        self,
        model: Path,
        artifact: Artifact,
        options: Any,
        feeds: Mapping[str, np.ndarray],
        progress: Progress,
        canonical: onnx.ModelProto,
    ) -> Mapping[str, Any]:
        """Stores inputs, and what ONNX Runtime computes of them, for the script that runs on a Mac, and looks whether
        activations fit into float16. The weights were compared when the package was written.
        """
        proto = model_file.load(model)
        written, sizes = _converted(proto, options)
        one = sample(written, sizes, feeds)
        found: dict[str, Any] = {}
        if options.precision == "float16" and (beyond := beyond_half(proto, one)):
            listed = ", ".join(f"{node} {largest:.3g}" for node, largest in beyond)
            found["notes"] = [
                f"activations come near the largest value of float16, 65504, in which the program computes: {listed}; "
                "build with coreml(precision=float32)"
            ]
        if options.bundle and options.image == "none":
            progress("storing inputs to compare with")
            outputs = ort.run(ort.session(proto, optimized=False), one)
            half = options.precision == "float16"
            examples = examples_of(written, [(one, outputs)], is_quantized(proto), half)
            package = next(path for path in artifact.paths[0].parents if path.name == PACKAGE)
            write_beside(package, written, options, _choices(artifact.details), examples)
        return found


def _choices(details: Mapping[str, Any]) -> dict[str, Any]:
    return {key: details[key] for key in ("deployment", "precision", "weights", "open_sizes")}


def _form(options: Any) -> Form:
    return Form(options.deployment, options.precision)


def _sizes(model: onnx.ModelProto, options: Any) -> Sizes:
    return sizes_of(model, parse_shapes(options.shapes), _batch(options))


def _batch(options: Any) -> tuple[int, int]:
    """Of an input that takes a picture, one: Core ML gives such an input no batch."""
    return batch_range(options.batch) if options.image == "none" else (1, 1)


def _converted(model: onnx.ModelProto, options: Any) -> tuple[Conversion, Sizes]:
    sizes = _sizes(model, options)
    try:
        return convert(model, sizes, _form(options), image_of(model, options)), sizes
    except TargetError as error:
        if sizes.open or sizes.assumed:
            raise TargetError(f"{error}; give the right sizes, such as with {_fixing(sizes)}") from error
        raise


def _closed_by(model: onnx.ModelProto, options: Any) -> str:
    """Why the model cannot be written so; empty if it can."""
    try:
        refused = _converted(model, options)[0].refused
    except TargetError as error:
        return str(error)
    return f"of node '{refused[0][0]}' ({refused[0][1]}) {refused[0][2]}" if refused else ""


def _single(text: str) -> str:
    """The shapes, with a first dimension of 1 where a range begins there."""
    parts = [part.split("x") for part in text.split(":")]
    return ":".join(dict.fromkeys("x".join([parts[0][0], *part[1:]]) for part in parts))


def _fixing(sizes: Sizes) -> str:
    fixed = ", ".join(f"{name}: {sizes.fixed().text(name)}" for name, shape in sizes.first.items() if shape)
    return f"shapes={{{fixed}}}"


def _refusal(written: Conversion, sizes: Sizes) -> str:
    reasons: dict[str, list[str]] = {}
    for node, op, reason in written.refused:
        reasons.setdefault(f"({op}) {reason}", []).append(node)
    listed = "; ".join(f"{first_few(nodes)} {reason}" for reason, nodes in list(reasons.items())[:3])
    more = f"; and {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
    fix = (
        f"; fix the sizes, such as with {_fixing(sizes)}" if any(SIZE in reason for reason in reasons) else ""
    )
    return f"Core ML cannot compute: {listed}{more}{fix}; optimize check MODEL --target coreml lists all"
