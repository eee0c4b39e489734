"""Energy of arithmetic and memory accesses on a 45 nm chip at 0.9 V.

Sources: Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, figure 1.1.9, for the
arithmetic, 8 and 16 bits included; Han et al., "Learning both weights and connections for efficient neural networks",
NeurIPS 2015, table 1, for the same with memory by 32-bit access (register file 1 pJ, SRAM 5 pJ, DRAM 640 pJ).
"""

from onnx import TensorProto

from onnx_lathe.optimizer.inspecting.rows import Energy

ADD_PJ = {"int8": 0.03, "int32": 0.1, "float16": 0.4, "float32": 0.9}
MULTIPLY_PJ = {"int8": 0.2, "int32": 3.1, "float16": 1.1, "float32": 3.7}
REGISTER_PJ, SRAM_PJ, DRAM_PJ = 1.0, 5.0, 640.0
"""One access of 32 bits."""

MAC_PJ = {
    "int8": MULTIPLY_PJ["int8"] + ADD_PJ["int32"],
    "float16": MULTIPLY_PJ["float16"] + ADD_PJ["float16"],
    "float32": MULTIPLY_PJ["float32"] + ADD_PJ["float32"],
}
"""Products of 8-bit integers are summed in 32 bits."""

NAMES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    **dict.fromkeys((TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4), "int8"),
}
"""Fewer than 8 bits are multiplied as 8."""


def energy_of(macs: int, kind: str | None, moved_bytes: int) -> Energy | None:
    """`kind`: of the numbers that are multiplied; None for a type that the table lacks. `moved_bytes`: of weights, inputs
    and results, each of which crosses the memory once.
    """
    if macs and kind not in MAC_PJ:
        return None
    words = moved_bytes / 4
    return Energy(macs * MAC_PJ[kind] if macs and kind else 0.0, words * DRAM_PJ, words * SRAM_PJ)
