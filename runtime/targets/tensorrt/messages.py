"""What TensorRT says, as a user can read it: without C++ conditions, source files, and the noise of a machine without
a GPU; with what to do, where that is known.
"""

import re
from typing import Any

NOISE = "catchCudaError"  # follows every error on a machine without a GPU, and says only that
# the parser's own message leaves out which file and why
IMPORT_ERRORS = ("Failed to open file", "external weights")

ADVICE = {
    "libnvinfer_lean": "install TensorRT's lean runtime of the same version, or give lean_runtime=false",
    "equal ranks when condition": "reshape one of the branches, or export the model with the condition fixed",
    "ScopeType::kUNDEFINED": "it is about an If or Loop of the model: export the model without, such as with fixed sizes",
    "HW-specific datatypes": "build for a GPU that has the type, or quantize in another",
    "FP32 GEMM is not supported": "run the pass float16, or build for sm80 or later",
    "violate shape constraints": "the network does not run at these sizes: give data, whose shape is taken, or shapes={INPUT: MIN:OPT:MAX}",
    "Could not find any implementation": "more workspace_mb may help; else leave the layer in float",
}
"""A part of an error -> what to do about it."""


_NO_PLUGIN = re.compile(r"plugin .*not found", re.IGNORECASE)
"""What the parser says of an operator that it only passes on to a plugin."""


def explained(text: str) -> str:
    """The text with what to do, where that is known."""
    return "; ".join([text, *(advice for sign, advice in ADVICE.items() if sign in text)])


def tidy_error(text: str) -> str:
    """A logged error without the function that says it, its number, and its place in TensorRT's source."""
    text = _without_noise(one_line(text))
    inner = re.fullmatch(r"(?:I\w+::\w+: )?Error Code \d+: [\w ]+ \((.*)\)", text)
    text = inner[1] if inner else text
    text = re.sub(r" In \S+ at /\S+", "", text)
    return re.sub(r"^\[[\w.]+:\d+: \w+\] ", "", text).strip().removesuffix(".")


def _without_noise(text: str) -> str:
    return re.sub(r"\s*\[checkMacros\.cpp::catchCudaError::\d+\] Error Code 1: Cuda Runtime \(.*$", "", text)


def parse_refusal(parser: Any, logger: Any) -> str:
    """Every node that the parser refuses, with its operator, grouped by reason."""
    nodes: dict[str, list[str]] = {}
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        operator, place = error.node_operator(), error.node_name()
        reason = tidy(error.desc())
        if reason in ("", "false") or _NO_PLUGIN.search(reason):
            reason = f"operator {operator} is not supported; export the model without it"
        where = (
            f"{place} ({operator})"
            if place
            else f"node {error.node()} ({operator})"
            if error.node() >= 0
            else "the model"
        )
        nodes.setdefault(reason, []).append(where)
    parts = [f"{', '.join(dict.fromkeys(where))}: {reason}" for reason, where in nodes.items()]
    parts += [text for text in logger.errors() if any(sign in text for sign in IMPORT_ERRORS)]
    return "; ".join(parts) or "; ".join(logger.errors()) or "the parser gives no reason"


def tidy(text: str) -> str:
    """TensorRT's sentence without the C++ condition before it: `Assertion failed: condition: sentence`, or
    `condition && "sentence"`.
    """
    text = _without_noise(one_line(text))
    quoted = re.search(r'&& "(.*)"$', text)
    return (quoted[1] if quoted else re.sub(r"^.*Assertion failed: .*?: (?=\S)", "", text)).removesuffix(".")


def one_line(text: object) -> str:
    return " ".join(str(text).split())
