"""How TensorRT describes the kernels of an engine: the log of TensorRT-RTX 1.7 as it was recorded, shortened, and the
inspector's JSON of TensorRT 10 and 11.
"""

import json
from typing import Any


def tensor(name: str, datatype: str, dimensions: str = "-1,4,28,28") -> str:
    return (
        f"{{ Name: {name}, Dimensions: [{dimensions}], Strides: [3136,1,112,4], StrideOrder: [3,0,2,1], "
        f"Datatype: {datatype}, Format: (NHWC) Channel major format }}"
    )


def line(
    name: str,
    kind: str,
    inputs: list[str],
    constants: list[str],
    nodes: str,
    tactic: str = "__myelin_CASK_STUB",
    sizes: str = "16,4,3,3",
) -> str:
    """A kernel of the log. `inputs`, `constants`: their types; `nodes`: "[ONNX Layer: a][ONNX Layer: b]"; `sizes`: of
    each constant.
    """
    read = ", ".join(tensor(f"__mye{place}_myl0", datatype) for place, datatype in enumerate(inputs))
    stored = ", ".join(
        tensor(f"__mye{place}dconst_myl0", datatype, sizes) for place, datatype in enumerate(constants)
    )
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [{f' {read}' if read else ''}], "
        f"Constants: [{f' {stored}' if stored else ''}], Outputs: [ {tensor('__myln_k_arg__bb1_11_myl0', 'Float')}], "
        f"TacticName: {tactic}, StreamId: 0, Metadata: {nodes}"
    )


RTX_LOG = "\n".join(
    [
        "Layers:",
        "Name: __mye695_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , "
        "StreamId: 0, Metadata: ",
        line(
            "__myl_MulMinMaxRounCast_myl0_1",
            "kgen",
            ["Float"],
            ["Float"],
            "[ONNX Layer: image_Q][ONNX Layer: conv1][ONNX Layer: w1_DQ]",
        ),
        line(
            "conv1_myl0_2",
            "correlation",
            ["Int8"],
            ["Int8", "Float", "Float"],
            "[ONNX Layer: conv1][ONNX Layer: image_DQ][ONNX Layer: w1_DQ]",
        ),
        line("conv2_myl0_3", "correlation", ["Float"], ["Float"], "[ONNX Layer: conv2][ONNX Layer: relu1]"),
        line(
            "__myl_CastMulCastCastMulFc_myl0_4",
            "runtime_fusion",
            ["Int8"],
            ["Float", "Int8"],
            "[ONNX Layer: w3_DQ][ONNX Layer: fc]",
            "",
        ),
        "",
        "I/O Tensors:",
        " Name: image, IOMode: Input, DataType: Float, Dimensions: [-1,1,28,28], Location: Device",
    ]
)
"""conv1 in INT8, conv2 in float, and fc in a fusion that decodes what it reads."""

INTERLEAVED = "Thirty-two wide channel vectorized row major Int8 format"


def layer(name: str, kind: str, reads: list[dict[str, str]], metadata: str, **further: Any) -> dict[str, Any]:
    inputs = [
        {"Name": f"in{place}", "Location": "Device", "Dimensions": [1, 64, 56, 56], **form}
        for place, form in enumerate(reads)
    ]
    return {"Name": name, "LayerType": kind, "Inputs": inputs, "Outputs": [], "Metadata": metadata} | further


def ten(layers: list[Any]) -> str:
    return json.dumps({"Layers": layers, "Bindings": ["image", "logits"]})


def eleven(layers: list[Any]) -> str:
    return json.dumps({"Layers": layers, "I/O Tensors": [{"Name": "image"}]})


TEN = ten(
    [
        layer(
            "conv1 + relu1",
            "CaskConvolution",
            [{"Format/Datatype": INTERLEAVED}],
            "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
            ParameterType="Convolution",
            Weights={"Type": "Int8", "Count": 36864},
            Bias={"Type": "Float", "Count": 64},
            TacticName="sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32",
        ),
        layer(
            "conv2",
            "CaskConvolution",
            [{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
            "[ONNX Layer: conv2]",
            Weights={"Type": "Half", "Count": 576},
        ),
        layer(
            "__myl_FcAdd_myl0_7",
            "fusion",
            [{"Format/Datatype": "Int8"}],
            "[ONNX Layer: fc]\x1f[ONNX Layer: bias]",
            TacticName="sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize64x64x64",
        ),
        layer(
            "Reformatting CopyNode for conv1", "Reformat", [{"Format/Datatype": "Row major linear FP32"}], ""
        ),
    ]
)
ELEVEN = eleven(
    [
        layer(
            "conv1_myl0_2",
            "correlation",
            [{"Format": "(NHWC) Channel major format", "Datatype": "Int8"}],
            "[ONNX Layer: conv1][ONNX Layer: w1_DQ]",
            Constants=[{"Name": "w", "Format": "(NHWC) Channel major format", "Datatype": "Int8"}],
        ),
        layer(
            "conv2_myl0_3",
            "correlation",
            [{"Format": "(Linear) Row major linear format", "Datatype": "Half"}],
            "[ONNX Layer: conv2]",
            Constants=[{"Name": "w", "Format": "(Linear) Row major linear format", "Datatype": "Half"}],
        ),
        layer(
            "fc_myl0_5",
            "gemm",
            [{"Format": "(Linear) Row major linear format", "Datatype": "Int8"}],
            "[ONNX Layer: fc]",
            Constants=[{"Name": "w", "Format": "(Transposed) Transposed format", "Datatype": "Int8"}],
        ),
    ]
)
"""Both: conv1 and fc in INT8, conv2 in float16."""
NAMES_ONLY = ten(["conv1 + relu1", "conv2"])
"""What the inspector says of an engine that was not built with DETAILED."""
