"""Passes and targets of other packages, found by their entry points."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.support import builders
from tests.support.installations import Installation, made
from tests.support.projects import lathe, run, write

pytest.importorskip("hatchling")

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "lathe-{name}"
version = "1.0"

[project.entry-points."onnx_lathe.{kind}es"]
{name} = "lathe_{name}.plug"

[tool.hatch.build.targets.wheel]
packages = ["lathe_{name}"]
"""
PASS = '''
"""Halves every weight."""

from dataclasses import dataclass

from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph.layers import weights


@register
class Halve(Pass):
    """Divides weights."""

    name = "halve"

    @dataclass(frozen=True)
    class Config:
        by: float = option(2.0, "divisor", low=1.0)

    def apply(self, graph, context):
        report = PassReport()
        for weight in weights(graph, refuse=report.skip):
            weight.tensor.values = weight.tensor.values / type(weight.tensor.values.flat[0])(self.config.by)
            report.edit(weight.nodes[0].name, "divided")
        return report
'''
TARGET = '''
"""Counts the nodes."""

from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.targets.core.base import Artifact, Target
from onnx_lathe.runtime.targets.core.registry import register


@register
class Count(Target):
    """A text file."""

    name = "count"
    help = "writes how many nodes the model has"

    def build(self, model, directory, options, progress):
        path = directory / "model.count.txt"
        path.write_text(str(len(model_file.load(model).graph.node)))
        return Artifact((path,), path.stat().st_size)
'''
"""
"""
