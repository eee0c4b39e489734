"""The README of a network, for the developer of the application that runs it."""

from collections.abc import Mapping, Sequence
from typing import Any

from onnx_lathe.runtime.targets.bundle import readme as parts
from onnx_lathe.runtime.targets.bundle.pixels import Pixels
from onnx_lathe.runtime.targets.bundle.ports import Port

HALF = {
    "arm64-fp32": "Arithmetic is in float32: `configure` turns float16 off.",
}
HALF_OTHERWISE = (
    "Where the processor has float16 arithmetic (ARMv8.2), ncnn uses it, with three digits. If outputs are too coarse, set `half` "
    "to false in `configure`, or choose algorithms with small errors when compressing: `winograd(by=error, profile=arm64-fp16)`."
)
UNCHECKED = "The example is generated. Lathe's tests compile its kind against ncnn's headers where there are any; this very file is unchecked."
MAT = "Shapes are those of one sample, the outermost dimension first: channels, height, width. ncnn's `Mat(w, h, c)` names them the other way round."
LAYOUTS = """ Other layouts: `PIXEL_RGB`, `PIXEL_BGR2RGB`, `PIXEL_GRAY2RGB` and so on in ncnn's `mat.h`.
ncnn does not smooth when it makes a picture smaller, as Pillow does: pixels of much larger pictures differ a little from those that the
network was judged on. `kanna_rotate` turns a camera's picture first."""


def readme(
    names: Mapping[str, str],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    pixels: Pixels | str,
    convolutions: int,
    options: tuple[str, str],
    verified: Mapping[str, Any] | None,
) -> str:
    """Markdown. `names`: of the files by kind; `convolutions`: how many have a choice of algorithms; `options`: the
    target's profile and storage.
    """
    mat = f"{MAT} {found}" if (found := parts.bounded(inputs)) else MAT
    return (
        "\n\n".join(
            (
                f"# {names['param']}: a network for ncnn",
                _files(names),
                f"{parts.ports(inputs, outputs, 'blob', typed=False)}\n\n{mat}",
                _pixels(pixels),
                f"## Android\n\n{ANDROID.format(**names)}",
                f"## iOS\n\n{IOS.format(**names)}",
                f"## Options\n\nSet before the network is loaded (`configure` in the example).\n\n{_options(names, *options)}",
                f"## Measured where this was built\n\n{parts.measured(verified)}",
                f"## Tune\n\n{_tune(names, convolutions)}",
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
    return f"{parts.files(rows)}\n\n{UNCHECKED}"


def _pixels(pixels: Pixels | str) -> str:
    found = parts.pixels(pixels, "from_rgba", "take `PIXEL_RGBA2BGR` in `from_rgba`")
    return found if isinstance(pixels, str) else found + LAYOUTS


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


def _tune(names: Mapping[str, str], count: int) -> str:
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
