"""The columns of `inspect`'s table: what they are called, how they sort, what they show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.optimizer.inspecting.rows import Row, Whole
from onnx_lathe.optimizer.report.units import count, size

Sortable = float | str | None


@dataclass(frozen=True)
class Column:
    """`value` is what it sorts by, `text` what it shows; `total` of the whole model."""

    name: str
    title: str
    help: str
    value: Callable[[Row], Sortable]
    text: Callable[[Row], str]
    total: Callable[[Whole], str] = lambda whole: ""

    @property
    def is_number(self) -> bool:
        return self.name not in ("layer", "op", "weight", "output", "gemm", "inside")


def joules(picojoules: float) -> str:
    for limit, unit in ((1e12, "J"), (1e9, "mJ"), (1e6, "uJ"), (1e3, "nJ")):
        if picojoules >= limit:
            return f"{picojoules / limit:.3g} {unit}"
    return f"{picojoules:.3g} pJ"


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g}x"


def _exact(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _shape(shape: Sequence[int | str] | None) -> str:
    return "?" if shape is None else "x".join(map(str, shape))


def _zeros(row: Row) -> str:
    if row.sparsity is not None:
        return f"{100 * row.sparsity:.1f} %"
    if row.weights:
        return "?"
    return "shared" * bool(row.weight_shape and not row.parameters)


def _winograd(row: Row) -> str:
    return ", ".join(times(row.saved[name]) for name in ("winograd23", "winograd43") if name in row.saved)


def _at_least(metric: str, whole: Whole, text: str) -> str:
    return f"> {text}" if metric in whole.uncounted else text


def _training(name: str) -> Callable[[Row], Sortable]:
    return lambda row: None if row.training is None else getattr(row.training, name)


def _training_text(name: str) -> Callable[[Row], str]:
    return lambda row: "?" if row.training is None else size(getattr(row.training, name))


def _training_total(name: str) -> Callable[[Whole], str]:
    return lambda whole: (
        "" if whole.training is None else _at_least("training", whole, size(getattr(whole.training, name)))
    )


def _trained(name: str, title: str, field: str, what: str) -> Column:
    return Column(name, title, what, _training(field), _training_text(field), _training_total(field))


_ALL = (
    Column(
        "layer", "layer", "name of the node", lambda row: row.node, lambda row: row.node, lambda whole: "all"
    ),
    Column("op", "op", "operator", lambda row: row.op, lambda row: row.op),
    Column(
        "weight",
        "weight",
        "shape of its largest weight",
        lambda row: _shape(row.weight_shape),
        lambda row: _shape(row.weight_shape),
    ),
    Column(
        "output",
        "output",
        "shape of its first result",
        lambda row: _shape(row.output_shape),
        lambda row: _shape(row.output_shape),
    ),
    Column(
        "weights",
        "weights",
        "parameters but those in vectors, such as biases",
        lambda row: row.weights,
        lambda row: _exact(row.weights),
        lambda whole: _exact(whole.weights),
    ),
    Column(
        "parameters",
        "parameters",
        "all float values that it reads, biases too",
        lambda row: row.parameters,
        lambda row: _exact(row.parameters),
        lambda whole: _exact(whole.parameters),
    ),
    Column(
        "activations",
        "activations",
        "elements of results in memory of their own",
        lambda row: row.activations,
        lambda row: _exact(row.activations),
        lambda whole: _at_least("activations", whole, _exact(whole.activations)),
    ),
    Column(
        "macs",
        "MACs",
        "multiply-accumulates",
        lambda row: row.macs,
        lambda row: "?" if row.macs is None else count(row.macs),
        lambda whole: "?" if whole.macs is None else count(whole.macs),
    ),
    Column(
        "bytes",
        "bytes",
        "of its weights as they are stored",
        lambda row: row.weight_bytes,
        lambda row: size(row.weight_bytes),
        lambda whole: size(whole.weight_bytes),
    ),
    Column(
        "zeros",
        "zeros",
        "share of its weights",
        lambda row: row.sparsity,
        _zeros,
        lambda whole: "?" if "sparsity" in whole.uncounted else f"{100 * whole.sparsity:.1f} %",
    ),
    Column(
        "memory",
        "memory",
        "bytes of its results",
        lambda row: row.activation_bytes,
        lambda row: "?" if row.activation_bytes is None else size(row.activation_bytes),
        lambda whole: _at_least("activations", whole, size(whole.activation_bytes)),
    ),
    Column("bits", "bits", "of one stored weight", lambda row: row.bits, lambda row: str(row.bits or "")),
    Column(
        "distinct",
        "distinct",
        "different values among its weights",
        lambda row: row.distinct,
        lambda row: _exact(row.distinct) if row.distinct or row.weights else "",
    ),
    Column(
        "intensity",
        "MACs/byte",
        "arithmetic intensity: MACs for each byte of weights, inputs and results",
        lambda row: row.intensity,
        lambda row: f"{row.intensity:.3g}" if row.intensity else "",
    ),
    Column(
        "gemm",
        "d x k2c x n",
        "the matrix product that it is, by im2col",
        lambda row: str(row.gemm or ""),
        lambda row: str(row.gemm or ""),
    ),
    Column(
        "copies",
        "copies",
        "elements that im2col makes over those of the input",
        lambda row: row.redundancy,
        lambda row: times(row.redundancy),
    ),
    Column(
        "winograd",
        "Winograd 2, 4",
        "direct multiplications over those of F(2 x 2, 3 x 3) and F(4 x 4, 3 x 3)",
        lambda row: row.saved.get("winograd23"),
        _winograd,
    ),
    Column(
        "energy",
        "energy",
        "at 45 nm: arithmetic, and weights, inputs and results through DRAM once",
        lambda row: None if row.energy is None else row.energy.total,
        lambda row: "?" if row.energy is None else joules(row.energy.total) * bool(row.energy.total),
        lambda whole: (
            "" if whole.energy is None else _at_least("energies", whole, joules(whole.energy.total))
        ),
    ),
    Column(
        "ms",
        "ms",
        "measured in ONNX Runtime, with --time",
        lambda row: row.ms,
        lambda row: row.ran_as if row.ms is None else f"{row.ms:.3f}",
        lambda whole: "" if whole.ms is None else f"{whole.ms:.3f}",
    ),
    _trained("train-weights", "float32 weights", "weights", "bytes of its weights in training"),
    _trained("kept", "kept", "kept", "bytes of activations that the backward pass reads"),
    _trained("gradients", "gradients", "gradients", "bytes of the gradients of its weights"),
    _trained("optimizer", "optimizer", "optimizer", "bytes that the optimizer keeps"),
    _trained("training", "training", "total", "all that training holds for it"),
    Column(
        "inside",
        "inside",
        "the body of If, Loop or Scan that it is in",
        lambda row: row.place,
        lambda row: row.place,
    ),
)

COLUMNS = {column.name: column for column in _ALL}
USUAL = (
    "layer",
    "op",
    "weight",
    "output",
    "weights",
    "activations",
    "macs",
    "bytes",
    "zeros",
    "bits",
    "intensity",
)
"""Unasked; the last ones are left out where the terminal is too narrow."""
OF_TRAINING = ("layer", "op", "output", "train-weights", "kept", "gradients", "optimizer", "training")
TIMED = ("layer", "op", "output", "macs", "ms", "weights", "activations", "bytes", "zeros")


def parse_columns(text: str) -> tuple[str, ...]:
    """Names with commas between; "all". Raises UsageError."""
    if text == "all":
        return tuple(COLUMNS)
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        column(name, "--columns")
    return names


def column(name: str, option: str) -> Column:
    """Raises UsageError for a name that is none."""
    if name not in COLUMNS:
        raise UsageError(
            f"{option}: there is no column '{name}'{nearest(name, COLUMNS)}; there are {', '.join(COLUMNS)}"
        )
    return COLUMNS[name]


def sort_rows(rows: Sequence[Row], name: str | None) -> list[Row]:
    """Largest first, names by the alphabet, what is not known last; in the model's order without a name."""
    if name is None:
        return list(rows)
    by = column(name, "--sort")
    known = [row for row in rows if by.value(row) is not None]
    known.sort(key=lambda row: by.value(row), reverse=by.is_number)  # type: ignore[arg-type, return-value]
    return [*known, *(row for row in rows if by.value(row) is None)]


def is_used(found: Column, rows: Sequence[Row]) -> bool:
    """Whether the column says anything of these rows."""
    return any(found.value(row) not in (None, "") or (found.name == "ms" and row.ran_as) for row in rows)
