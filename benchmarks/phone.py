"""Phones. ncnn: what converts and how near it stays, INT8 beside ONNX Runtime's, times beside both runtimes, and the error of
half-precision Winograd.

    python benchmarks/phone.py [convert int8 winograd error coreml qnn qnn-agreement litert litert-samples litert-speed
        litert-wake litert-peer]
        [--only NAME ...] [--data-dir DIR] [--out DIR] [--networks DIR] [--onnx2tf PYTHON [--backends NAME ...] [--again]]

convert   networks of others and of this repository, in float and after svd, prune_channels, codebook and int8: the largest
          difference to ONNX Runtime, and sizes; int8: cosine to the float network, beside ONNX Runtime's of the same Q/DQ graph
int8      ResNet-18, VGG-16, EfficientNet-Lite0, and small networks of matrix products or of convolutions of one dimension
          (phone_layers.py): INT8 beside float with Winograd in ncnn, and beside ONNX Runtime
winograd  ResNet-18, ResNet-50, VGG-16 and MobileNetV2: the algorithms that winograd(by=time) chooses beside ncnn's own
error     the worst layer of each network in half precision, by ncnn's own choice and by winograd(by=error)
coreml    the networks of convert as Core ML's packages, in float, half, codebook, pruned and INT8: the bytes of their weights
qnn       the same networks and ResNet-18's and MobileNetV2's shapes, in float and INT8, compiled for a Qualcomm chip; one sample in its simulator
qnn-agreement   200 images in the simulator, beside ONNX Runtime: the repository's networks, and EfficientNet-Lite0 with --photos DATA.npz
litert    the networks and recipes of convert as .tflite: the difference to ONNX Runtime, sizes, Transposes, what leaves XNNPACK;
          int8: signal to noise beside ONNX Runtime's of the same Q/DQ graph, and steps of difference by operator
litert-samples  INT8's signal to noise beside ONNX Runtime's once more: with inputs moved by less than a step, and on other samples
litert-speed    ResNet-18's shapes in LiteRT, float and INT8, beside ONNX Runtime
litert-wake     the networks of a package that carries each as ONNX and as .tflite: ours beside theirs
litert-peer     the repository's networks, the packages' and two of the package onnx as .tflite, beside those that onnx2tf writes of
          them on the same data: sizes, times, differences to ONNX Runtime, signal to noise of INT8, and what either cannot convert

One thread; times are taken in turn in one process, in another order each time, and given as medians of ratios.
"""

from pathlib import Path

from phone_convert import convert
from phone_coreml import coreml
from phone_error import error
from phone_litert import litert, speed, wake
from phone_onnx2tf import BACKENDS
from phone_peer import peer
from phone_qnn import agreement, qnn
from phone_samples import samples
from phone_speed import int8, winograd
from sets import parser_of, run_sections


def main() -> None:
    sections = {
        "convert": convert,
        "int8": int8,
        "winograd": winograd,
        "error": error,
        "coreml": coreml,
        "qnn": qnn,
        "qnn-agreement": agreement,
        "litert": litert,
        "litert-samples": samples,
        "litert-speed": speed,
        "litert-wake": wake,
        "litert-peer": peer,
    }
    parser = parser_of(__doc__, sections, "phone")
    parser.add_argument("--only", nargs="+", help="names of networks; all others are left out")
    parser.add_argument(
        "--networks", type=Path, help="folder of the packages' networks (default: OUT/networks)"
    )
    parser.add_argument(
        "--photos",
        type=Path,
        help="pictures of ImageNet as EfficientNet-Lite0 takes them, in parts calibration and evaluation, with labels",
    )
    parser.add_argument(
        "--onnx2tf", type=Path, help="the Python of an environment with onnx2tf, for litert-peer"
    )
    parser.add_argument(
        "--backends", nargs="+", default=BACKENDS, choices=BACKENDS, help="those of onnx2tf, for litert-peer"
    )
    parser.add_argument(
        "--again", action="store_true", help="litert-peer takes the times again, of the files that are there"
    )
    parser.add_argument("--samples", type=int, default=64, help="how many others litert-samples draws")
    parser.add_argument("--minutes", type=float, default=0.5, help="how long each pair of times is taken")
    run_sections(parser, sections)


if __name__ == "__main__":
    main()
