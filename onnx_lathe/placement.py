"""What a target runs in INT8: said by targets, read by the passes that place Q/DQ pairs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """What a target runs in INT8. As it stands it is TensorRT's, the canonical form's; a target declares
    its own.

    A layer reads its first input quantized, and a weight quantized per output channel.
    """

    layers: frozenset[str] = frozenset({"Conv", "Gemm", "MatMul"})
    """Operators with weights that have an INT8 kernel which pays, in time or in the file's size."""
    single_rows: frozenset[str] = frozenset()
    """Operators beside those that have an INT8 kernel worth its file's size where they read one row of each sample, and
    not on the many rows of a sequence. It need not be faster: on x86 ncnn's takes 1.2 to 1.9 times float's time there.
    """
    depthwise: bool = False
    joins: bool = True
    """Whether an addition behind a convolution becomes part of it when its other operand is quantized, and
    that one alone.
    """
    operators: frozenset[str] = frozenset()
    """Operators without weights that compute on integers, when all that they read and write is quantized."""
    passed: frozenset[str] = frozenset()
    """Operators that hand quantized values on, if what they write has the scale of what they read."""
    results: frozenset[str] = frozenset()
    """Operators among `layers` that compute in INT8 only if their result is quantized too."""
    unsigned: bool = False
    """Whether activations are 8 bits over their range, with a zero-point, instead of INT8 with zero-point 0."""
    pairs: bool = False
    """Whether products are added in pairs in 16 bits on some processors, where weights must keep the sums
    small.
    """
    stored: bool = False
    """Whether every tensor is stored in INT8, those that no layer reads too: int8 then says the range of each, as
    `lathe.range`.
    """

    wide: bool = False
    """Whether layers compute with activations of 16 bits, too, and weights of 8."""

    def __str__(self) -> str:
        return ", ".join(
            f"{name}={sorted(value) if isinstance(value, frozenset) else value}"
            for name, value in vars(self).items()
        )

    def __or__(self, other: "Placement") -> "Placement":
        """What one of two targets runs in INT8. An addition that one wants quantized whole is not joined;
        what they store is canonical unless both want it otherwise.
        """
        return Placement(
            self.layers | other.layers,
            self.single_rows | other.single_rows,
            self.depthwise or other.depthwise,
            self.joins or other.joins,
            self.operators | other.operators,
            self.passed | other.passed,
            self.results | other.results,
            self.unsigned and other.unsigned,
            self.pairs or other.pairs,
            self.stored or other.stored,
            self.wide or other.wide,
        )


CANONICAL = Placement()

PHONE = Placement(
    layers=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    depthwise=True,
    joins=False,
    unsigned=True,
    stored=True,
    wide=True,
)
"""What the runtimes of phones run in INT8 that store every tensor so, LiteRT and QNN: passes/lowering/phone.py."""
