"""ncnn, for phones: `.param` and `.bin`, written from the lowered graph and tried in the ncnn package."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import TargetError, first_few
from onnx_lathe.kernels import PROFILES
from onnx_lathe.placement import Placement
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
)
from onnx_lathe.runtime.targets.core.between import decided_within
from onnx_lathe.runtime.targets.core.branches import decided
from onnx_lathe.runtime.targets.core.further import sized_tensors
from onnx_lathe.runtime.targets.core.registry import register
from onnx_lathe.runtime.targets.core.sizes import ANY, BETWEEN, Sizes, from_data, parse, ranges, sizes_of
from onnx_lathe.runtime.targets.ncnn import verify
from onnx_lathe.runtime.targets.ncnn.algorithms import count_chosen, wanted
from onnx_lathe.runtime.targets.ncnn.bundle.writing import bundle
from onnx_lathe.runtime.targets.ncnn.convert import Conversion, convert
from onnx_lathe.runtime.targets.ncnn.dialect import param_text, write_weights
from onnx_lathe.runtime.targets.ncnn.halves import beyond_half
from onnx_lathe.runtime.targets.ncnn.notes import about_defaults, about_slow_matrices
from onnx_lathe.runtime.targets.ncnn.reopen import reopen
from onnx_lathe.runtime.targets.ncnn.requantize import count_requantized, is_int8
from onnx_lathe.runtime.targets.ncnn.running import Settings, package
from onnx_lathe.runtime.targets.ncnn.session import Session, open_files
from onnx_lathe.runtime.targets.ncnn.sharing import repeated

STORAGES = ("float32", "float16")
PARAM, WEIGHTS = "model.ncnn.param", "model.ncnn.bin"
HALVES = ("arm64-fp16", "arm64-int8")
"""Profiles whose float layers compute in float16."""
OPEN = "on the size of the input"
"""Ends each reason that fixed sizes would do away with: one or several things depend on it."""
SEVERAL = "several samples at once"


@register
class Ncnn(Target):
    name = "ncnn"
    outputs = ("model.ncnn.*",)
    packages = ("ncnn",)
    help = "ncnn's .param and .bin, for phones: float, INT8 and codebooks as the graph has them"
    lowering = "ncnn"
    placement = Placement(layers=frozenset({"Conv", "Gemm"}), single_rows=frozenset({"MatMul"}), joins=False)
    """On the rows of a sequence ncnn's INT8 InnerProduct takes two to five times as long as float. On one row it takes
    1.2 to 1.9 times as long on x86 while the weights lie in the cache; there it is for the file's size, which a note says.
    """
    opens = True
    suffixes = (".param",)

    @dataclass(frozen=True)
    class Config(Target.Config):
        storage: str = option(
            "float32",
            "how float weights are stored; float16 is half the file, and what phones compute in",
            choices=STORAGES,
        )
        profile: str = option(
            "arm64-fp16", "the processor it is for, and its arithmetic", choices=tuple(PROFILES)
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
            "how pixels become input, as --preprocess says it, for the C++ example; a run's own if it has one",
        )
        classes: str = option("", classes.HELP)
        bundle: bool = option(
            True,
            "a C++ example for Android and iOS, a README for the application's developer, and stored examples to verify with",
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            preprocess.parse(self.preprocess)
            parse(self.shapes)

    def available(self) -> str | None:
        try:
            package()
        except TargetError as error:
            return str(error)
        return None

    def placed(self, options: Any) -> Placement:
        return replace(self.placement or Placement(), depthwise=PROFILES[options.profile].depthwise_int8)

    def refusals(self, model: onnx.ModelProto, options: Any) -> list[tuple[str, str, str]]:
        written, sizes = _converted(model, options)
        fixed = ", ".join(
            f"{name}: {sizes.fixed().text(name)}" for name, shape in sizes.first.items() if shape
        )
        fix = f"; fix it, such as with shapes={{{fixed}}}"
        return [(node, op, reason + (fix if OPEN in reason else "")) for node, op, reason in written.refused]

    def check(self, model: onnx.ModelProto, options: Any) -> list[tuple[str, str]]:
        return list(_converted(model, options)[0].unfollowed) if wanted(model.graph.node) else []

    def layers(self, model: onnx.ModelProto, options: Any = None) -> list[LayerVerdict]:
        made = {name: node for node in model.graph.node for name in node.output}
        found = []
        for index, node in layers_of(model).items():
            decoders = [made.get(name) for name in node.input[:2]]
            int8 = all(one is not None and one.op_type == "DequantizeLinear" for one in decoders)
            name = node.name or f"{node.op_type}_{index}"
            found.append(LayerVerdict(name, node.op_type, int8, "" if int8 else NOT_QUANTIZED))
        return found

    def lowering_options(
        self, options: Any, model: onnx.ModelProto, known: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        sizes = sizes_of(model, parse(options.shapes))
        found = decided(model, sizes.first, sizes.second)
        bounds = ranges(options.shapes)
        if sizes.open and all(name in bounds for name in sizes.first if sizes.is_open(name)):
            sized = sized_tensors(model.graph)  # of these, `decided` has looked at some sizes alone
            found = {name: taken for name, taken in found.items() if name not in sized}
            found |= decided_within(model, *sizes.bounded(bounds))
        return {"branches": {**known.get("branches", {}), **found}}

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
        given = parse(options.shapes)
        known = from_data(model, given, shapes, per_call)
        sizes = sizes_of(model, given | known)
        return replace(options, shapes={**options.shapes, **{name: sizes.text(name) for name in known}}), []

    def settled(self, model: onnx.ModelProto, options: Any, fitted: Any) -> tuple[Any, list[str]]:
        """Sizes of the data that cannot stay open are fixed at them."""
        known = [name for name in fitted.shapes if name not in options.shapes]
        sizes = sizes_of(model, parse(fitted.shapes))
        reason = _closed_by(model, sizes) if known and sizes.open else ""
        if not reason:
            return fitted, []
        fixed, bounded = sizes.fixed(), ranges(options.shapes)
        if per_call := sizes.of_one_sample():
            fixed = fixed if _closed_by(model, per_call) else per_call
        texts = {
            name: fixed.text(name, BETWEEN if name in bounded else ANY)
            for name, shape in sizes.first.items()
            if shape
        }
        note = (
            f"built for inputs of {', '.join(f'{name} {texts[name]}' for name in known)}, as the data has them: "
            f"{reason}"
        )
        return replace(fitted, shapes=texts), [note]

    def build(self, model: Path, directory: Path, options: Any, progress: Progress) -> Artifact:
        """Writes `model.ncnn.param`, `.bin` and `.json`, which says what goes in and out, and what an application's
        developer wants beside them.
        """
        proto = model_file.load(model)
        written, sizes = _converted(proto, options)
        if written.refused:
            raise TargetError(_refusal(written, _fixed_batch(proto)))
        half = options.storage == "float16"
        param, weights = (directory / name for name in (PARAM, WEIGHTS))
        progress("writing ncnn's files")
        with replacing(weights) as file:
            write_weights(written.layers, file, half)
        with replacing(param) as file:
            file.write(param_text(written.layers).encode())
        paths = bundle(param, written, proto, options)
        int8 = sum(map(is_int8, written.layers))
        details = {
            "layers": len(written.layers),
            "int8_layers": int8,
            "requantized": count_requantized(written.layers),
            "algorithms": count_chosen(written.layers),
            "open_sizes": sizes.open,
        }
        found = about_defaults(proto.graph), about_slow_matrices(written.layers, options.profile)
        notes = tuple(filter(None, found))
        return Artifact(paths, sum(path.stat().st_size for path in (param, weights)), details, notes)

    def verify(
        self,
        model: Path,
        artifact: Artifact,
        options: Any,
        feeds: Mapping[str, np.ndarray],
        progress: Progress,
        canonical: onnx.ModelProto,
    ) -> Mapping[str, Any]:
        """Compares every output with ONNX Runtime's: of the network with float32 weights, and of that written."""
        progress("comparing ncnn with ONNX Runtime")
        proto = model_file.load(model)
        written, sizes = _converted(proto, options)
        samples = verify.samples(written, sizes, feeds)
        verify.check_batch(canonical, written, samples[0])
        param, weights = artifact.paths[:2]
        half = options.storage == "float16"
        if half:
            with tempfile.TemporaryDirectory(prefix="lathe-") as scratch:
                exact = Path(scratch) / "model.bin"
                with exact.open("wb") as file:
                    write_weights(written.layers, file, False)
                verify.check(verify.agreement(proto, written, (param, exact), samples[0]))
        results = [verify.agreement(proto, written, (param, weights), one, half) for one in samples]
        for result in results:
            verify.check(result)
        found = verify.report(max(results, key=verify.Agreement.share))
        beyond = beyond_half(proto, samples[0]) if options.profile in HALVES else []
        found["verified"]["fits_float16"] = not beyond
        notes = [note] if (note := repeated(proto, half)) else []
        if beyond:
            listed = ", ".join(f"{node} {largest:.3g}" for node, largest in beyond)
            notes.append(
                f"activations come near the largest value of float16, 65504, in which phones compute: {listed}; the example "
                "therefore switches float16 off, and ncnn(profile=arm64-fp32) chooses algorithms for that"
            )
        if notes:
            found["notes"] = notes
        stored = verify.examples(samples, results)
        bundle(param, written, proto, options, found["verified"], stored)
        return found

    def open(self, artifact: Artifact, options: Any, threads: int = 1) -> Session | None:
        return open_files(artifact.paths[0], Settings(threads=threads))

    def reopen(self, path: Path, threads: int = 1) -> Reopened:
        return reopen(path, threads)


def _closed_by(model: onnx.ModelProto, sizes: Sizes) -> str:
    """Why the sizes cannot stay open; empty if they can."""
    try:
        refused = convert(model, sizes.first, sizes.second).refused
        closed = [one for one in refused if OPEN in one[2]]
        if refused and not closed:
            alone = convert(model, sizes.first, sizes.first).refused
            closed = [one for one in refused if one not in alone]
    except TargetError as error:
        return str(error)
    found = [f"of node '{node}' ({op}) {reason}" for node, op, reason in closed]
    return found[0] if found else ""


def _converted(model: onnx.ModelProto, options: Any) -> tuple[Conversion, Sizes]:
    given = parse(options.shapes)
    sizes = sizes_of(model, given)
    try:
        written = convert(model, sizes.first, sizes.second, options.profile)
    except TargetError as error:
        if sizes.open and sizes.first.keys() - given.keys():
            name = next(name for name in sizes.first if sizes.first[name] != sizes.second[name])
            raise TargetError(
                f"{error}; these are Lathe's own sizes for what the model leaves open: give data, or "
                f"ncnn(shapes={{{name}: {'x'.join(map(str, sizes.first[name]))}}}) with the right ones"
            ) from error
        raise
    if not written.refused and not written.inputs:
        raise TargetError(
            "the model has no inputs, and ncnn runs nothing without; what it gives is always the same: store that instead"
        )
    bounds = {name: pair for name, pair in ranges(options.shapes).items() if sizes.is_open(name)}
    inputs = [
        replace(port, least=bounds[port.tensor][0], greatest=bounds[port.tensor][1])
        if port.tensor in bounds
        else port
        for port in written.inputs
    ]
    return replace(written, inputs=inputs), sizes


def _fixed_batch(model: onnx.ModelProto) -> int:
    """The batch that all inputs are fixed at, if that is more than 1; else 0."""
    stored = {tensor.name for tensor in model.graph.initializer}
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.input if value.name not in stored]
    found = {dims[0].dim_value if dims else 0 for dims in shapes}
    batch = found.pop() if len(found) == 1 else 0
    return batch if batch > 1 else 0


def _refusal(written: Conversion, batches: int) -> str:
    reasons: dict[str, list[str]] = {}
    for node, op, reason in written.refused:
        reasons.setdefault(f"({op}) {reason}", []).append(node)
    listed = "; ".join(f"{first_few(nodes)} {reason}" for reason, nodes in list(reasons.items())[:3])
    more = f"; and {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
    fix = "; fix the sizes with shapes={...}" if any(OPEN in reason for reason in reasons) else ""
    if batches and any(SEVERAL in reason for reason in reasons):
        fix += f"; the model takes {batches} samples at once: export it with a batch of 1, or an open one"
    return f"ncnn cannot compute: {listed}{more}{fix}; optimize check MODEL --target ncnn lists all"
