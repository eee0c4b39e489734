"""Text of the two C++ examples, with $names for what is this network's own. Both begin with PORTS."""

PORTS = r"""
namespace model {

const char* const MODEL = $file;

enum class Type { Float32, Int8, UInt8, Int16, Int32, Int64, Bool, Other };

// A tensor of the file: its sizes in order, 0 where a size is the caller's choice. Where scale is not 0, it holds integers for real
// numbers: real = scale * (q - zero_point).
struct Port { const char* name; std::vector<int> sizes; Type type; float scale; int zero_point; };

const std::vector<Port> INPUTS = {
$inputs};

const std::vector<Port> OUTPUTS = {
$outputs};

// Of the answers in their order, where the model's data named them.
const std::vector<const char*> CLASSES = {
$classes};

using Bytes = std::vector<unsigned char>;

template<typename T>
inline void put(Bytes& bytes, T value)
{
    const size_t at = bytes.size();
    bytes.resize(at + sizeof(T));
    std::memcpy(bytes.data() + at, &value, sizeof(T));
}

template<typename T>
inline T whole(const Port& port, float value)
{
    if (port.scale == 0.0f) return (T)value;
    const float q = std::nearbyint(value / port.scale) + (float)port.zero_point; // half to even, as ONNX's QuantizeLinear
    return (T)std::min(std::max(q, (float)std::numeric_limits<T>::min()), (float)std::numeric_limits<T>::max());
}

// Real numbers, in the order of the file's sizes, as the file takes them. Of a type that is Other the application makes the bytes.
inline Bytes filled(const Port& port, const std::vector<float>& values)
{
    Bytes bytes;
    for (float value : values)
    {
        if (port.type == Type::Float32) put(bytes, value);
        if (port.type == Type::Int8) put(bytes, whole<int8_t>(port, value));
        if (port.type == Type::UInt8) put(bytes, whole<uint8_t>(port, value));
        if (port.type == Type::Int16) put(bytes, whole<int16_t>(port, value));
        if (port.type == Type::Int32) put(bytes, (int32_t)value);
        if (port.type == Type::Int64) put(bytes, (int64_t)value);
        if (port.type == Type::Bool) put(bytes, (uint8_t)(value != 0.0f));
    }
    return bytes;
}

template<typename T>
inline void take(std::vector<float>& values, const Port& port, const Bytes& bytes)
{
    for (size_t at = 0; at + sizeof(T) <= bytes.size(); at += sizeof(T))
    {
        T value;
        std::memcpy(&value, bytes.data() + at, sizeof(T));
        values.push_back(port.scale == 0.0f ? (float)value : port.scale * ((float)value - (float)port.zero_point));
    }
}

// The inverse of filled. Integers of 32 and 64 bits become floats, which are exact to 2^24.
inline std::vector<float> reals(const Port& port, const Bytes& bytes)
{
    std::vector<float> values;
    if (port.type == Type::Float32) take<float>(values, port, bytes);
    if (port.type == Type::Int8) take<int8_t>(values, port, bytes);
    if (port.type == Type::UInt8 || port.type == Type::Bool) take<uint8_t>(values, port, bytes);
    if (port.type == Type::Int16) take<int16_t>(values, port, bytes);
    if (port.type == Type::Int32) take<int32_t>(values, port, bytes);
    if (port.type == Type::Int64) take<int64_t>(values, port, bytes);
    return values;
}

$from_rgba"""

FROM_RGBA = r"""// A picture of 4 bytes per pixel (R, G, B, A), as Android's Bitmap (ARGB_8888) holds it, as input `$input`: channels $order,
// (pixel - mean) * norm. $framed
inline Bytes from_rgba(const unsigned char* pixels, int width, int height)
{
    const float mean[] = {$mean};
    const float norm[] = {$norm};
    const int channels = $channels;
$frame
    std::vector<float> values((size_t)channels * rows * columns);
    for (int y = 0; y < rows; y++)
        for (int x = 0; x < columns; x++)
        {
            // bilinear, between the centres of pixels
            const float sy = std::min(std::max(((float)(y + top) + 0.5f) * (float)height / (float)high - 0.5f, 0.0f), (float)(height - 1));
            const float sx = std::min(std::max(((float)(x + left) + 0.5f) * (float)width / (float)wide - 0.5f, 0.0f), (float)(width - 1));
            const int y0 = (int)sy, x0 = (int)sx, y1 = std::min(y0 + 1, height - 1), x1 = std::min(x0 + 1, width - 1);
            const float fy = sy - (float)y0, fx = sx - (float)x0;
            float rgba[4];
            for (int c = 0; c < 4; c++)
            {
                const float upper = (float)pixels[((size_t)y0 * width + x0) * 4 + c] * (1 - fx) + (float)pixels[((size_t)y0 * width + x1) * 4 + c] * fx;
                const float lower = (float)pixels[((size_t)y1 * width + x0) * 4 + c] * (1 - fx) + (float)pixels[((size_t)y1 * width + x1) * 4 + c] * fx;
                rgba[c] = upper * (1 - fy) + lower * fy;
            }
            if (channels == 1) rgba[0] = 0.299f * rgba[0] + 0.587f * rgba[1] + 0.114f * rgba[2];
            for (int c = 0; c < channels; c++)
                values[$index] = (rgba[c] - mean[c]) * norm[c];
        }
    return filled(INPUTS[0], values);
}
"""

KEPT = r"""    const int rows = height, columns = width, high = height, wide = width, top = 0, left = 0;"""

SHORT = r"""    const int rows = $rows, columns = $columns, side = $side;
    const int high = height <= width ? side : (int)((long long)side * height / width);
    const int wide = height <= width ? (int)((long long)side * width / height) : side;
    const int top = (int)std::nearbyint((high - rows) / 2.0), left = (int)std::nearbyint((wide - columns) / 2.0);"""

STRETCHED = r"""    const int rows = $rows, columns = $columns, high = $high, wide = $wide;
    const int top = (int)std::nearbyint((high - rows) / 2.0), left = (int)std::nearbyint((wide - columns) / 2.0);"""

MAIN = r"""
inline std::vector<Bytes> made_up()
{
    std::vector<Bytes> inputs;
    for (const Port& port : INPUTS)
    {
        size_t count = 1;
        for (int size : port.sizes) count *= (size_t)std::max(size, 1);
        std::vector<float> values(count);
        for (size_t i = 0; i < count; i++) values[i] = port.type == Type::Float32 || port.scale != 0.0f ? 0.01f * (float)(i % 100) : 0.0f;
        inputs.push_back(filled(port, values));
    }
    return inputs;
}

} // namespace model

#if !defined(MODEL_NO_MAIN)
int main(int argc, char** argv)
{
    if (argc != 2)
    {
        std::fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    model::Network network;
    if (!network.load(std::string(argv[1]) + "/" + model::MODEL))
    {
        std::fprintf(stderr, "%s: the network cannot be loaded\n", argv[1]);
        return 1;
    }
    std::vector<model::Bytes> outputs;
    if (!network.run(model::made_up(), outputs))
    {
        std::fprintf(stderr, "%s: the network cannot be run\n", argv[1]);
        return 1;
    }
    for (size_t i = 0; i < outputs.size(); i++)
    {
        std::printf("%s", model::OUTPUTS[i].name);
        const std::vector<float> values = model::reals(model::OUTPUTS[i], outputs[i]);
        for (size_t n = 0; n < std::min<size_t>(values.size(), 10); n++) std::printf(" %.9g", values[n]);
        if (values.size() > 10) std::printf(" ... %zu values", values.size());
        std::printf("\n");
    }
    return 0;
}
#endif
"""

STANDARD = r"""#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>
"""

INTERPRETER = r"""// $title
//
// Loads the network that lies beside this file, feeds it and reads its outputs, by LiteRT's C API for the Interpreter: on Android,
// iOS or a desktop. All values here are this network's. C++11.
//
//     example FOLDER      runs the network once on made-up values
//
// An application defines MODEL_NO_MAIN, includes this file in one of its own, and calls load, filled (or from_rgba), run and reals.

#if defined(__has_include)
#if __has_include("tflite/c/c_api.h")
#include "tflite/c/c_api.h"
#else
#include "tensorflow/lite/c/c_api.h"
#endif
#else
#include "tensorflow/lite/c/c_api.h"
#endif

$standard
#if defined(__ANDROID__)
#include <android/asset_manager.h>
#endif
$ports
// Runs in one thread at a time.
class Network
{
public:
    Network() = default;
    Network(const Network&) = delete;
    Network& operator=(const Network&) = delete;
    ~Network()
    {
        TfLiteInterpreterDelete(interpreter);
        TfLiteModelDelete(file);
    }

    // From a file, whose path is FOLDER/MODEL. threads: of the processor, as many as there are fast cores, 2 to 4.
    bool load(const std::string& path, int threads = 2) { return open(TfLiteModelCreateFromFile(path.c_str()), threads); }

#if defined(__ANDROID__)
    // From the assets of an Android application: AAssetManager_fromJava(env, context.getAssets()).
    bool load(AAssetManager* assets, int threads = 2)
    {
        AAsset* asset = AAssetManager_open(assets, MODEL, AASSET_MODE_BUFFER);
        if (asset == nullptr) return false;
        const unsigned char* start = (const unsigned char*)AAsset_getBuffer(asset);
        if (start != nullptr) memory.assign(start, start + AAsset_getLength(asset)); // the interpreter reads it as long as it lives
        AAsset_close(asset);
        return start != nullptr && open(TfLiteModelCreate(memory.data(), memory.size()), threads);
    }
#endif

    // Sizes of an input that leaves some open, such as {4, 32, 32, 3} for a batch of 4; they stay until they are set again.
    bool resize(size_t input, const std::vector<int>& sizes)
    {
        return TfLiteInterpreterResizeInputTensor(interpreter, (int32_t)input, sizes.data(), (int32_t)sizes.size()) == kTfLiteOk &&
               TfLiteInterpreterAllocateTensors(interpreter) == kTfLiteOk;
    }

    // Inputs in the order of INPUTS; outputs come in the order of OUTPUTS. False also for an input of another number of bytes.
    bool run(const std::vector<Bytes>& inputs, std::vector<Bytes>& outputs)
    {
        if (inputs.size() != INPUTS.size()) return false;
        for (size_t i = 0; i < INPUTS.size(); i++)
        {
            TfLiteTensor* tensor = TfLiteInterpreterGetInputTensor(interpreter, (int32_t)i);
            if (TfLiteTensorCopyFromBuffer(tensor, inputs[i].data(), inputs[i].size()) != kTfLiteOk) return false;
        }
        if (TfLiteInterpreterInvoke(interpreter) != kTfLiteOk) return false;
        outputs.resize(OUTPUTS.size());
        for (size_t i = 0; i < OUTPUTS.size(); i++)
        {
            const TfLiteTensor* tensor = TfLiteInterpreterGetOutputTensor(interpreter, (int32_t)i);
            outputs[i].resize(TfLiteTensorByteSize(tensor));
            if (TfLiteTensorCopyToBuffer(tensor, outputs[i].data(), outputs[i].size()) != kTfLiteOk) return false;
        }
        return true;
    }

private:
    bool open(TfLiteModel* opened, int threads)
    {
        TfLiteInterpreterDelete(interpreter);
        TfLiteModelDelete(file);
        interpreter = nullptr;
        file = opened;
        if (file == nullptr) return false;
        TfLiteInterpreterOptions* options = TfLiteInterpreterOptionsCreate();
        TfLiteInterpreterOptionsSetNumThreads(options, threads);
        interpreter = TfLiteInterpreterCreate(file, options);
        TfLiteInterpreterOptionsDelete(options);
        return interpreter != nullptr && TfLiteInterpreterAllocateTensors(interpreter) == kTfLiteOk;
    }

    std::vector<unsigned char> memory;
    TfLiteModel* file = nullptr;
    TfLiteInterpreter* interpreter = nullptr;
};
$main"""

COMPILED = r"""// $title
//
// Loads the network that lies beside this file, feeds it and reads its outputs, by LiteRT's CompiledModel, which also runs on GPUs and
// NPUs. All values here are this network's. C++17 with Abseil, or C++20 with LITERT_NO_ABSL.
//
//     example FOLDER      runs the network once on made-up values
//
// An application defines MODEL_NO_MAIN, includes this file in one of its own, and calls load, filled (or from_rgba), run and reals.

#include "litert/cc/litert_common.h"
#include "litert/cc/litert_compiled_model.h"
#include "litert/cc/litert_environment.h"
#include "litert/cc/litert_tensor_buffer.h"

$standard#include <memory>
$ports
// Runs in one thread at a time, at the sizes that the file states, where an open batch is 1.
class Network
{
public:
    // From a file, whose path is FOLDER/MODEL. accelerator: kGpu and kNpu need their libraries beside libLiteRt.so.
    bool load(const std::string& path, litert::HwAccelerators accelerator = litert::HwAccelerators::kCpu)
    {
        auto made = litert::Environment::Create({});
        if (!made) return false;
        environment = std::make_unique<litert::Environment>(std::move(*made));
        auto compiled = litert::CompiledModel::Create(*environment, path, accelerator);
        if (!compiled) return false;
        model = std::make_unique<litert::CompiledModel>(std::move(*compiled));
        return buffers(INPUTS, true, given) && buffers(OUTPUTS, false, found);
    }

    // Inputs in the order of INPUTS; outputs come in the order of OUTPUTS. False also for an input of another number of bytes.
    bool run(const std::vector<Bytes>& inputs, std::vector<Bytes>& outputs)
    {
        if (inputs.size() != INPUTS.size()) return false;
        for (size_t i = 0; i < INPUTS.size(); i++)
        {
            litert::TensorBuffer& buffer = given.at(INPUTS[i].name);
            auto size = buffer.PackedSize();
            if (!size || *size != inputs[i].size()) return false;
            if (!buffer.Write<unsigned char>(litert::Span<const unsigned char>(inputs[i].data(), inputs[i].size()))) return false;
        }
        if (!model->Run(given, found)) return false;
        outputs.resize(OUTPUTS.size());
        for (size_t i = 0; i < OUTPUTS.size(); i++)
        {
            litert::TensorBuffer& buffer = found.at(OUTPUTS[i].name);
            auto size = buffer.PackedSize();
            if (!size) return false;
            outputs[i].resize(*size);
            if (!buffer.Read<unsigned char>(litert::Span<unsigned char>(outputs[i].data(), outputs[i].size()))) return false;
        }
        return true;
    }

private:
    using Buffers = litert::FlatHashMap<litert::StringView, litert::TensorBuffer>;

    bool buffers(const std::vector<Port>& ports, bool input, Buffers& made)
    {
        made.clear();
        for (const Port& port : ports)
        {
            auto buffer = input ? model->CreateInputBuffer(port.name) : model->CreateOutputBuffer(port.name);
            if (!buffer) return false;
            made.emplace(port.name, std::move(*buffer));
        }
        return true;
    }

    std::unique_ptr<litert::Environment> environment; // outlives what follows
    std::unique_ptr<litert::CompiledModel> model;
    Buffers given, found;
};
$main"""
