"""What the bridge leaves out on purpose, and why, in the words that a refusal and docs/operators.md use."""

from collections.abc import Mapping

_LEFT_OUT: Mapping[str, str] = {
    "control flow: export the model with its branches decided and its loops unrolled": "If Loop Scan SequenceMap",
    "not a tensor": (
        "ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct SequenceEmpty SequenceErase "
        "SequenceInsert SequenceLength SplitToSequence"
    ),
    "text": "LabelEncoder RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer",
    "image files": "ImageDecoder",
    "random numbers: a result could not be compared with the original's": (
        "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike"
    ),
    "state kept between calls": "CausalConvWithState LinearAttention TensorScatter",
    "integer arithmetic has no gradient: give the model with QuantizeLinear and DequantizeLinear instead": (
        "ConvInteger DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul"
    ),
    "bits of integers": "BitCast BitShift",
    "signal processing": "BlackmanWindow DFT HammingWindow HannWindow MelWeightMatrix STFT",
    "part of object detection": "MaxRoiPool NonMaxSuppression RoiAlign",
    "no gradient, and a result whose size depends on the data": "Unique",
    "a subgraph computes its scores": "FlexAttention",
    "a step of training": "Adagrad Adam Gradient Momentum",
    "not a network": "ArrayFeatureExtractor Binarizer TreeEnsemble",
}

REASONS: Mapping[str, str] = {name: reason for reason, names in _LEFT_OUT.items() for name in names.split()}
"""Operator -> why it is left out."""

LIMITS: Mapping[str, str] = {
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool", "MaxUnpool"), "more than three spatial dimensions"),
    "BatchNormalization": "training_mode=1; spatial=0. `GraphModule(train_normalization=True)` trains it",
    "BitwiseNot": "UINT16, UINT32, UINT64 and 4-bit types",
    **dict.fromkeys(("Cast", "CastLike"), "floats of 8 and fewer bits, 2-bit integers, strings"),
    "Constant": "strings and sparse tensors",
    "DeformConv": "other than two spatial dimensions",
    "DequantizeLinear": "floats of 8 and fewer bits, 2-bit integers",
    "Dropout": "training_mode computed or true",
    "Equal": "strings",
    **dict.fromkeys(("GRU", "RNN"), "clip; activations other than sigmoid and tanh, or for RNN tanh or relu"),
    "LSTM": "peepholes, input_forget, clip; activations other than sigmoid and tanh",
    "GridSample": "cubic, unless the model declares an input of four dimensions",
    "Identity": "sequences and optionals",
    "QuantizeLinear": "floats of 8 and fewer bits, 2-bit integers; a zero-point of a type that the model does not declare",
    "Resize": "antialias with nearest; exclude_outside without cubic",
}
"""Operator -> what of it is refused."""
