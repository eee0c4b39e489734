"""Options of svd that are about its fit."""

from dataclasses import dataclass

from onnx_lathe.passes.core.options import option


@dataclass(frozen=True)
class FittingOptions:
    """How method=response fits the two layers to what one answered."""

    asymmetric: bool = option(
        True, "fit layers to the original's responses, from the input that they get behind earlier splits"
    )
    rounds: int = option(
        24,
        "asymmetric: at most so many groups of layers are fitted one after the other; each runs the data",
        low=1,
    )
    nonlinear: bool = option(True, "where a ReLU follows, make the error behind it small")
    positions: int = option(3000, "responses that are sampled for nonlinear", low=10)
