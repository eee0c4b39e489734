"""Text of the C++ example, with $names for what is this network's own."""

EXAMPLE = r"""// $title
//
// Loads the network that lies beside this file, feeds it and reads its outputs: on Android, iOS or a desktop. All values
// here are this network's. Link with ncnn (find_package(ncnn), target ncnn); C++11.
//
//     example FOLDER                                              runs the network once on made-up values
//     example FOLDER tune CHOICES.json DEVICE [THREADS] [--all]   times its convolutions, and writes the best algorithms
//
// An application defines MODEL_NO_MAIN, includes this file in one of its own, and calls load, filled (or from_rgba) and run.

#include "net.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#if defined(__ANDROID__)
#include <android/asset_manager.h>
#endif

namespace model {

const char* const PARAM = $param;
const char* const WEIGHTS = $weights;

// A blob: its number of dimensions, and width, height, depth and channels; 0 where a size is the caller's choice. integers: it holds int, not float.
struct Blob { const char* name; int dims, w, h, d, c; bool integers; };

const std::vector<Blob> INPUTS = {
$inputs};

const std::vector<Blob> OUTPUTS = {
$outputs};

// Of the answers in their order, where the model's data named them.
const std::vector<const char*> CLASSES = {
$classes};

// Options count when the network is loaded: weights are packed for this number of threads.
inline void configure(ncnn::Net& net, int threads)
{
    net.opt.num_threads = threads;
    net.opt.use_vulkan_compute = false;
    const bool half = $half; // arithmetic in float16, where the processor has it: 3 digits
    net.opt.use_fp16_packed = half;
    net.opt.use_fp16_storage = half;
    net.opt.use_fp16_arithmetic = half;
}

// From a folder: iOS ([[NSBundle mainBundle] resourcePath]), a desktop, or files that an Android application keeps.
inline bool load(ncnn::Net& net, const std::string& folder, int threads)
{
    configure(net, threads);
    return net.load_param((folder + "/" + PARAM).c_str()) == 0 && net.load_model((folder + "/" + WEIGHTS).c_str()) == 0;
}

#if defined(__ANDROID__)
// From the assets of an Android application: AAssetManager_fromJava(env, context.getAssets()).
inline bool load(ncnn::Net& net, AAssetManager* assets, int threads)
{
    configure(net, threads);
    return net.load_param(assets, PARAM) == 0 && net.load_model(assets, WEIGHTS) == 0;
}
#endif

// Values of one sample in the order of the model's tensor, as an input; float, or int for an input of integers.
template<typename T>
inline ncnn::Mat filled(const T* values, const Blob& blob)
{
    ncnn::Mat mat;
    if (blob.dims == 1) mat.create(blob.w);
    if (blob.dims == 2) mat.create(blob.w, blob.h);
    if (blob.dims == 3) mat.create(blob.w, blob.h, blob.c);
    if (blob.dims == 4) mat.create(blob.w, blob.h, blob.d, blob.c);
    const size_t size = (size_t)blob.w * blob.h * blob.d; // of a channel: the next one begins at a multiple of 16 bytes
    for (int c = 0; c < blob.c; c++)
        std::memcpy((unsigned char*)mat.data + mat.cstep * c * mat.elemsize, values + size * c, size * sizeof(T));
    return mat;
}

template<typename T>
inline void append(std::vector<float>& found, const ncnn::Mat& mat)
{
    for (int c = 0; c < mat.c; c++)
    {
        const T* channel = (const T*)((const unsigned char*)mat.data + mat.cstep * c * mat.elemsize);
        const size_t size = (size_t)mat.w * mat.h * mat.d;
        for (size_t i = 0; i < size; i++) found.push_back((float)channel[i]);
    }
}

// The values of an output in the order of the model's tensor. Integers of an output that holds them become floats, which are exact to 2^24.
inline std::vector<float> values(const ncnn::Mat& mat, const Blob& blob)
{
    std::vector<float> found;
    if (blob.integers) append<int>(found, mat);
    else append<float>(found, mat);
    return found;
}

$from_rgba
// Inputs in the order of INPUTS; outputs come in the order of OUTPUTS. A loaded network may be run by several threads.
inline bool run(const ncnn::Net& net, const std::vector<ncnn::Mat>& inputs, std::vector<ncnn::Mat>& outputs)
{
    ncnn::Extractor extractor = net.create_extractor();
    for (size_t i = 0; i < INPUTS.size(); i++)
        if (extractor.input(INPUTS[i].name, inputs[i]) != 0) return false;
    outputs.resize(OUTPUTS.size());
    for (size_t i = 0; i < OUTPUTS.size(); i++)
        if (extractor.extract(OUTPUTS[i].name, outputs[i]) != 0) return false;
    return true;
}

// ---- tune: which algorithm computes each 3 x 3 convolution fastest on this device ----

// node: its name, as JSON; own: the algorithm that ncnn takes by itself, on the processor that the network was written for.
struct Convolution { const char* node; const char* own; const char* bottom; const char* top; };

const std::vector<Convolution> CONVOLUTIONS = {
$convolutions};

const char* const ALGORITHMS[] = {"", "direct", "winograd23", "winograd43", "winograd63"}; // "": ncnn's own choice

inline std::vector<ncnn::Mat> made_up()
{
    std::vector<ncnn::Mat> inputs;
    for (const Blob& blob : INPUTS)
    {
        Blob size = blob;
        if (!size.w) size.w = 224;
        if (!size.h) size.h = 224;
        if (!size.d) size.d = 8;
        if (!size.c) size.c = 8;
        std::vector<float> numbers((size_t)size.w * size.h * size.d * size.c);
        for (size_t i = 0; i < numbers.size(); i++) numbers[i] = 0.01f * (float)(i % 100);
        const std::vector<int> zeros(numbers.size());
        inputs.push_back(blob.integers ? filled(zeros.data(), size) : filled(numbers.data(), size));
    }
    return inputs;
}

// Microseconds of each convolution, one after another in one run.
inline bool time_once(const ncnn::Net& net, const std::vector<ncnn::Mat>& inputs, std::vector<std::vector<double> >& times)
{
    ncnn::Extractor extractor = net.create_extractor();
    extractor.set_light_mode(false); // blobs stay, so that a call computes no more than the layers that are missing
    for (size_t i = 0; i < INPUTS.size(); i++)
        if (extractor.input(INPUTS[i].name, inputs[i]) != 0) return false;
    for (size_t i = 0; i < CONVOLUTIONS.size(); i++)
    {
        ncnn::Mat bottom, top;
        if (extractor.extract(CONVOLUTIONS[i].bottom, bottom, 1) != 0) return false; // 1: as it is, packed
        const auto begin = std::chrono::steady_clock::now();
        if (extractor.extract(CONVOLUTIONS[i].top, top, 1) != 0) return false;
        times[i].push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
    }
    return true;
}

inline double quantile(std::vector<double> times, double share)
{
    std::sort(times.begin(), times.end());
    return times[(size_t)(share * (double)(times.size() - 1) + 0.5)];
}

// Without the switch "no Winograd" (31=64) that earlier choices have left in the text.
inline std::string free_of_choices(std::string text)
{
    const std::string mask = " 31=64";
    for (size_t at = text.find(mask); at != std::string::npos; at = text.find(mask, at))
    {
        const size_t end = at + mask.size();
        if (end == text.size() || text[end] == ' ' || text[end] == '\n') text.erase(at, mask.size());
        else at = end;
    }
    return text;
}

// Writes the best algorithm of each layer. Another than ncnn's own choice has to be certainly faster: three quarters of its
// times are below three quarters of those. algorithms: 2 compares with "direct" alone, which any ncnn can be told layer by layer; 5 with all.
inline bool tune(const std::string& folder, const std::string& path, const std::string& device, int threads, int algorithms)
{
    std::ifstream file((folder + "/" + PARAM).c_str(), std::ios::binary);
    std::stringstream content;
    content << file.rdbuf();
    const std::string text = free_of_choices(content.str());
    std::vector<ncnn::Net> nets((size_t)algorithms);
    for (int a = 0; a < algorithms; a++)
    {
        ncnn::Net& net = nets[(size_t)a];
        configure(net, threads);
        if (a > 0) net.opt.use_winograd_convolution = a > 1;
        if (a > 1)
        {
            net.opt.use_winograd23_convolution = a == 2;
            net.opt.use_winograd43_convolution = a == 3;
            net.opt.use_winograd63_convolution = a == 4;
        }
        if (net.load_param_mem(text.c_str()) != 0 || net.load_model((folder + "/" + WEIGHTS).c_str()) != 0) return false;
    }
    const std::vector<ncnn::Mat> inputs = made_up();
    const int rounds = 40, warm = 5;
    std::vector<std::vector<std::vector<double> > > times(
        (size_t)algorithms, std::vector<std::vector<double> >(CONVOLUTIONS.size()));
    for (int round = 0; round < warm + rounds; round++) // in turn, so that all see the same temperature
        for (size_t a = 0; a < nets.size(); a++)
        {
            if (round == warm)
                for (std::vector<double>& one : times[a]) one.clear();
            if (!time_once(nets[a], inputs, times[a])) return false;
        }
    std::string layers;
    for (size_t i = 0; i < CONVOLUTIONS.size(); i++)
    {
        size_t best = 0;
        for (size_t a = 0; a < nets.size(); a++)
        {
            const double median = quantile(times[a][i], 0.5);
            std::printf("%-11s %10.1f us  %s\n", a ? ALGORITHMS[a] : "ncnn's own", median, CONVOLUTIONS[i].node);
            if (quantile(times[a][i], 0.75) < quantile(times[0][i], 0.25) && median < quantile(times[best][i], 0.5)) best = a;
        }
        layers += std::string(i ? "," : "") + "\n  " + CONVOLUTIONS[i].node + ": \"" + (best ? ALGORITHMS[best] : CONVOLUTIONS[i].own) + "\"";
    }
    std::string name;
    for (char c : device)
        if ((unsigned char)c >= 32 && c != '"' && c != '\\') name += c;
    std::ofstream out(path.c_str(), std::ios::binary);
    out << "{\"format\": 1, \"device\": \"" << name << "\", \"layers\": {" << layers << (layers.empty() ? "" : "\n") << "}}\n";
    return (bool)out.flush();
}

} // namespace model

#if !defined(MODEL_NO_MAIN)
int main(int argc, char** argv)
{
    if (argc >= 5 && std::strcmp(argv[2], "tune") == 0)
    {
        const bool all = std::strcmp(argv[argc - 1], "--all") == 0;
        const int threads = argc > 5 && std::atoi(argv[5]) > 0 ? std::atoi(argv[5]) : 1;
        if (model::tune(argv[1], argv[3], argv[4], threads, all ? 5 : 2)) return 0;
        std::fprintf(stderr, "%s cannot be loaded, run or written to %s\n", argv[1], argv[3]);
        return 1;
    }
    if (argc != 2)
    {
        std::fprintf(stderr, "usage: %s FOLDER [tune CHOICES.json DEVICE [THREADS] [--all]]\n", argv[0]);
        return 2;
    }
    ncnn::Net net;
    if (!model::load(net, argv[1], 1))
    {
        std::fprintf(stderr, "%s: the network cannot be loaded\n", argv[1]);
        return 1;
    }
    std::vector<ncnn::Mat> outputs;
    if (!model::run(net, model::made_up(), outputs))
    {
        std::fprintf(stderr, "%s: the network cannot be run\n", argv[1]);
        return 1;
    }
    for (size_t i = 0; i < outputs.size(); i++)
    {
        std::printf("%s", model::OUTPUTS[i].name);
        const std::vector<float> numbers = model::values(outputs[i], model::OUTPUTS[i]);
        for (size_t n = 0; n < std::min<size_t>(numbers.size(), 10); n++) std::printf(" %g", numbers[n]);
        if (numbers.size() > 10) std::printf(" ... %zu values", numbers.size());
        std::printf("\n");
    }
    return 0;
}
#endif
"""

FROM_RGBA = r"""// A picture of 4 bytes per pixel (R, G, B, A), as Android's Bitmap (ARGB_8888) and iOS's CGBitmapContext give it,
// as input `$input`: channels $order, (pixel - mean) * norm.
inline ncnn::Mat from_rgba(const unsigned char* pixels, int width, int height)
{
$made
    const float mean[] = {$mean};
    const float norm[] = {$norm};
    in.substract_mean_normalize(mean, norm);
    return in;
}
"""

KEPT = r"""    ncnn::Mat in = ncnn::Mat::from_pixels(pixels, ncnn::Mat::$kind, width, height);"""

ROI_SHORT = r"""    // the shorter side becomes $side pixels, then the middle $width x $height (width x height) is taken
    const float scale = (float)std::min(width, height) / $side.f;
    const int w = (int)($width * scale), h = (int)($height * scale);
    ncnn::Mat in = ncnn::Mat::from_pixels_roi_resize(
        pixels, ncnn::Mat::$kind, width, height, (width - w) / 2, (height - h) / 2, w, h, $width, $height);"""

ROI_STRETCHED = r"""    // stretched to $resized_width x $resized_height pixels (width x height), then the middle $width x $height is taken
    const int w = (int)((long long)width * $width / $resized_width), h = (int)((long long)height * $height / $resized_height);
    ncnn::Mat in = ncnn::Mat::from_pixels_roi_resize(
        pixels, ncnn::Mat::$kind, width, height, (width - w) / 2, (height - h) / 2, w, h, $width, $height);"""
