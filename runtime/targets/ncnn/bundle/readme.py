"""The README of a network, for the developer of the application that runs it."""

from collections.abc import Mapping
from typing import Any

from onnx_lathe.runtime.targets.ncnn.bundle.pixels import Pixels

HALF = {
    "arm64-fp32": "Arithmetic is in float32: `configure` turns float16 off.",
}
HALF_OTHERWISE = (
    "Where the processor has float16 arithmetic (ARMv8.2), ncnn uses it, with three digits. If outputs are too coarse, set `half` "
    "to false in `configure`, or choose algorithms with small errors when compressing: `winograd(by=error, profile=arm64-fp16)`."
)
UNVERIFIED = "The files were not run here."


def readme(
    names: Mapping[str, str], described: Mapping[str, Any], pixels: Pixels | str, profile: str, storage: str
) -> str:
    """Markdown. `names`: of the files by kind; `described`: what the description says."""
    return (
        "\n\n".join(
            (
                f"# {names['param']}: a network for ncnn",
                _files(names),
                _ports(described),
                _pixels(pixels),
                f"## Android\n\n{ANDROID.format(**names)}",
                f"## iOS\n\n{IOS.format(**names)}",
                f"## Options\n\nSet before the network is loaded (`configure` in the example).\n\n{_options(names, profile, storage)}",
                f"## Measured where this was built\n\n{_measured(described)}",
                f"## Tune\n\n{_tune(names, described)}",
            )
        )
        + "\n"
    )


def _files(names: Mapping[str, str]) -> str:
    rows = (
        (names["param"], "the layers, as text"),
        (names["bin"], "their weights"),
        (
            names["json"],
            "inputs, outputs, preprocessing, algorithms, SHA-256 of the files; the application does not need it",
        ),
        (names["example"], "C++ that loads, feeds, reads and tunes this network"),
    )
    table = "\n".join(f"| `{name}` | {what} |" for name, what in rows)
    return (
        f"| file | |\n|---|---|\n{table}\n\nThe example is generated. Lathe's tests compile its kind against ncnn's headers where "
        "there are any; this very file is unchecked."
    )


def _ports(described: Mapping[str, Any]) -> str:
    lines = ["| | blob | the model's tensor | shape of the blob |", "|---|---|---|---|"]
    for kind in ("inputs", "outputs"):
        for port in described[kind]:
            shown = " x ".join(_size(port, axis) for axis in port["axes"]) or "1"
            lines.append(f"| {kind[:-1]} | `{port['blob']}` | `{port['tensor']}` | {shown} |")
    axes = "Shapes are those of one sample, the outermost dimension first: channels, height, width. ncnn's `Mat(w, h, c)` names them the other way round."
    if any(port["least"] for port in described["inputs"]):
        axes += " Keep sizes between those that the table gives: beyond them, the network may compute what the model does not."
    return "\n".join(lines) + f"\n\n{axes}"


def _size(port: Mapping[str, Any], axis: int) -> str:
    size, least = port["shape"][axis], port["least"]
    if size is None and least:
        return f"{least[axis]} to {port['greatest'][axis]}"
    return "any" if size is None else str(size)


def _pixels(pixels: Pixels | str) -> str:
    if isinstance(pixels, str):
        return f"## Pixels\n\nThe application computes the inputs itself: {pixels}."
    mean, norm = (", ".join(f"{value:.9g}" for value in values) for values in (pixels.mean, pixels.norm))
    order = {
        "RGB": "Channels are in the order red, green, blue, as Lathe's loader decodes pictures; if the arrays that the network learned from "
        "hold blue first, take `PIXEL_RGBA2BGR` in `from_rgba`.",
        "GRAY": "The network takes grey levels.",
        "RGBA": "Channels are red, green, blue and alpha.",
    }[pixels.order]
    return f"""## Pixels

`from_rgba` makes the input of a picture of four bytes per pixel: `(pixel - mean) * norm`

| mean | norm |
|---|---|
| {mean} | {norm} |

{order} Other layouts: `PIXEL_RGB`, `PIXEL_BGR2RGB`, `PIXEL_GRAY2RGB` and so on in ncnn's `mat.h`.
ncnn does not smooth when it makes a picture smaller, as Pillow does: pixels of much larger pictures differ a little from those that the
network was judged on. `kanna_rotate` turns a camera's picture first."""


ANDROID = """1. Unpack `ncnn-YYYYMMDD-android.zip` (or `-android-vulkan`) of https://github.com/Tencent/ncnn/releases into `app/src/main/jni`.
2. `{param}` and `{bin}` go into `app/src/main/assets`; in `build.gradle`: `androidResources {{ noCompress += ["bin", "param"] }}` and
   `externalNativeBuild {{ cmake {{ path "src/main/jni/CMakeLists.txt" }} }}`, `ndk {{ abiFilters "arm64-v8a" }}`.
3. `CMakeLists.txt`:

       set(ncnn_DIR ${{CMAKE_SOURCE_DIR}}/ncnn-YYYYMMDD-android/${{ANDROID_ABI}}/lib/cmake/ncnn)
       find_package(ncnn REQUIRED)
       add_library(network SHARED jni.cpp)
       target_link_libraries(network ncnn android log)

4. `jni.cpp` begins with `#define MODEL_NO_MAIN` and `#include "{example}"`, and calls `model::load(net, AAssetManager_fromJava(env, assets), threads)`, once; then `model::run` for each input."""

IOS = """1. Add `ncnn.framework` and `openmp.framework` of `ncnn-YYYYMMDD-ios.zip` to the target (Link Binary With Libraries; "Do Not Embed").
2. Add `{param}` and `{bin}` to Copy Bundle Resources.
3. An Objective-C++ file (`.mm`) begins with `#define MODEL_NO_MAIN` and `#include "{example}"`, and calls
   `model::load(net, [[[NSBundle mainBundle] resourcePath] UTF8String], threads)`."""


def _options(names: Mapping[str, str], profile: str, storage: str) -> str:
    stored = {
        "float16": "Weights are stored in float16.",
        "float32": "Float weights are stored in float32; `ncnn(storage=float16)` halves the file.",
    }[storage]
    return "\n".join(
        (
            "- Threads: as many as there are fast cores, 2 to 4; weights are packed for that number when the network is loaded.",
            f"- {HALF.get(profile, HALF_OTHERWISE)}",
            f"- {stored}",
            f"- An ncnn built without some layers has to keep those of `{names['param']}`, and Bias and Scale for `substract_mean_normalize`.",
            "- `use_vulkan_compute`: off; the GPU's drivers differ, and nothing here was measured on one.",
        )
    )


def _measured(described: Mapping[str, Any]) -> str:
    verified = described.get("verified")
    if verified is None:
        return UNVERIFIED
    return (
        f"Run in {verified['in']} on a desktop, its outputs are ONNX Runtime's within {verified['relative_error']:.1e} of their size "
        f"(output `{verified['worst_output']}`; {verified['allowed']:.1e} are allowed). Accuracy and latency there are in Lathe's "
        "`report.json`, under `targets`. No time was measured on a phone."
    )


def _tune(names: Mapping[str, str], described: Mapping[str, Any]) -> str:
    count = len(described["convolutions"])
    if not count:
        return (
            "The network has no 3 x 3 convolution with a choice of algorithms, so there is nothing to tune."
        )
    return f"""{count} convolutions can be computed directly or by Winograd's algorithms. Which is faster depends on the device:

    # CMakeLists.txt: add_executable(example {names["example"]}), target_link_libraries(example ncnn)
    cmake -DCMAKE_TOOLCHAIN_FILE=$ANDROID_NDK/build/cmake/android.toolchain.cmake -DANDROID_ABI=arm64-v8a -B build . && cmake --build build
    adb push build/example {names["param"]} {names["bin"]} /data/local/tmp/
    adb shell "cd /data/local/tmp && ./example . tune choices.json 'NAME OF THE DEVICE' 4"
    adb pull /data/local/tmp/choices.json

times ncnn's own choice and direct computation in turn, layer by layer, and writes the better one: direct only where it is certainly
faster. ncnn can be told that and no more, layer by layer; `--all` times all algorithms. The file

    {{"format": 1, "device": "...", "layers": {{"name of the node": "direct"}}}}

goes back into Lathe: `optimize model.onnx --passes "..., winograd(tuning=choices.json)" --target ncnn`."""
