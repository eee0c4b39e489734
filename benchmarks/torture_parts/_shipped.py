"""The models that the `onnx` package ships or generates for backends to be tested with, and the real networks of
networks_packages.py. Of a model with several inputs there is one more with all but the first stored, so that passes
find weights, and of small ones one with all stored, so that there is a result to be computed beforehand.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_lathe.runtime.files.reading import OPSETS

Feeds = Mapping[str, Any]
DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
FOLDERS = ("light", "pytorch-converted", "pytorch-operator", "simple")


@dataclass(frozen=True)
class Shipped:
    """A model, and what to feed it with; None: random values."""

    name: str
    load: Callable[[], tuple[onnx.ModelProto, Feeds | None]]


def in_folders(*folders: str) -> list[Shipped]:
    """Those that the package has as files, which are found at once."""
    return [
        Shipped(f"{folder}/{path.parent.name}", lambda path=path: _in_folder(path))
        for folder in folders
        for path in sorted((DATA / folder).glob("*/model.onnx"))
    ]


@cache
def shipped() -> tuple[Shipped, ...]:
    """All, in the order of their names; to make those of single operators takes 10 s."""
    from onnx.backend.test.case.model import collect_testcases as collect_models
    from onnx.backend.test.case.node import collect_testcases

    found = []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # cases divide by zero on purpose
        cases = {case.name: case for case in collect_testcases(None)}
        cases |= {case.name: case for case in collect_models() if case.model is not None}
    for name, case in cases.items():
        found.append(Shipped(name, lambda case=case: _given(case)))
        tensors = all(isinstance(one, np.ndarray | np.generic) for one in case.data_sets[0][0])
        count = len(case.model.graph.input)
        if tensors and count > 1 and not name.endswith("_expanded"):
            found.append(Shipped(f"{name}, stored", lambda case=case: _stored(case, 1)))
        if tensors and count and not name.endswith("_expanded"):
            found.append(Shipped(f"{name}, constant", lambda case=case: _stored(case, 0)))
    found += in_folders(*FOLDERS)
    for path in sorted((DATA / "light").glob("*.onnx")):
        found.append(Shipped(f"light/{path.stem}", lambda path=path: _light(path)))
    return tuple(sorted(found, key=lambda one: one.name))


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _given(case: Any) -> tuple[onnx.ModelProto, Feeds]:
    names = [value.name for value in case.model.graph.input]
    return _readable(case.model), {
        name: _array(one) for name, one in zip(names, case.data_sets[0][0], strict=False)
    }


def _readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """At the newest opset that Lathe reads, where every operator means there what it does in the model's own."""
    newest, (main,) = OPSETS[1], [one for one in model.opset_import if not one.domain] or [None]
    nodes = [*model.graph.node, *(node for one in model.functions for node in one.node)]
    if main is None or main.version <= newest or any(one.opset_import for one in model.functions):
        return model
    for node in nodes:
        if not node.domain and onnx.defs.get_schema(node.op_type, main.version).since_version > newest:
            return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = min(model.ir_version, 11)
    for one in copy.opset_import:
        one.version = one.version if one.domain else newest
    return copy


def _stored(case: Any, count: int) -> tuple[onnx.ModelProto, Feeds]:
    """With all inputs but the first `count` as initializers."""
    model, feeds = onnx.ModelProto(), _given(case)[1]
    model.CopyFrom(_readable(case.model))
    stay = [value for value in model.graph.input if value.name in list(feeds)[:count]]
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in list(feeds.items())[count:]
    )
    del model.graph.input[:]
    model.graph.input.extend(stay)
    return model, dict(list(feeds.items())[:count])


def _in_folder(path: Path) -> tuple[onnx.ModelProto, Feeds]:
    model = onnx.load(path)
    stored = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in stored]
    feeds = {}
    for place, name in enumerate(names):
        tensor = onnx.TensorProto.FromString(
            (path.parent / "test_data_set_0" / f"input_{place}.pb").read_bytes()
        )
        feeds[name] = numpy_helper.to_array(tensor)
    return model, feeds


def _light(path: Path) -> tuple[onnx.ModelProto, None]:
    """With weights, and an eighth of the channels."""
    from tests.support.models import load_foreign

    return load_foreign(path, thinner=8), None


@cache
def real(folder: Path) -> tuple[Shipped, ...]:
    """The networks of packages, each fetched into the folder on first use."""
    from networks_packages import REAL, fetched

    def load(network: Any) -> tuple[onnx.ModelProto, Feeds]:
        random = np.random.default_rng(0)
        feeds = {name: draw(random)[None].astype(np.float32) for name, draw in network.inputs.items()}
        return onnx.load(fetched(network, folder)), feeds

    return tuple(Shipped(f"real/{network.name}", lambda network=network: load(network)) for network in REAL)
