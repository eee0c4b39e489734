"""Verdicts as JUnit's XML, which CI services show as tests: a test case per gate.

Form: the schema of Jenkins' xUnit plug-in, which GitHub, GitLab and Azure read.
"""

from pathlib import Path
from xml.etree import ElementTree

from onnx_lathe.errors import printable
from onnx_lathe.optimizer.judging.judgement import Judgement
from onnx_lathe.optimizer.judging.writing import write_text


def write_junit(judgement: Judgement, path: Path) -> None:
    """Raises UsageError if the file cannot be written."""
    write_text(path, junit(judgement))


def junit(judgement: Judgement) -> str:
    """The document."""
    failures = sum(not verdict.passed for verdict in judgement)
    counts = {"tests": str(len(judgement)), "failures": str(failures), "errors": "0"}
    time = f"{judgement.seconds:.3f}"
    root = ElementTree.Element("testsuites", {"name": "optimize gate", **counts, "time": time})
    name = printable(f"{judgement.candidate.path} against {judgement.base.path}")
    alone = {"skipped": "0", "timestamp": judgement.started[:19]}  # the schema has them of one suite only
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts, "time": time, **alone})
    facts = ElementTree.SubElement(suite, "properties")
    for key, value in properties(judgement).items():
        ElementTree.SubElement(facts, "property", {"name": key, "value": printable(value)})
    for verdict in judgement:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": "optimize.gate", "name": printable(verdict.gate), "time": "0"}
        )
        if not verdict.passed:
            failure = ElementTree.SubElement(
                case, "failure", {"type": "gate", "message": printable(verdict.message)}
            )
            failure.text = printable(verdict.message)
        ElementTree.SubElement(case, "system-out").text = printable(verdict.message)
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def properties(judgement: Judgement) -> dict[str, str]:
    """What the verdicts were found with, by name."""
    processor = judgement.processor
    flags = " ".join(processor.get("flags", ()))
    return {
        "samples": str(judgement.samples),
        "confidence": "" if judgement.confidence is None else f"{judgement.confidence:g}",
        "kernels": judgement.kernels,
        "processor": f"{processor.get('name', '')} ({flags})",
        "system": f"{processor.get('system', '')}, Python {processor.get('python', '')}",
        "base": judgement.base.library,
        "candidate": judgement.candidate.library,
        **{f"library {name}": version for name, version in judgement.libraries.items()},
    }
