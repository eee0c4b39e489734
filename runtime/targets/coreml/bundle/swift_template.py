"""Text of the Swift example, with @names for what is this network's own ($0 is Swift's)."""

EXAMPLE = r"""// @title
//
// Loads the network that lies beside this file, feeds it and reads its outputs, by Core ML, which computes on the processor, the GPU or
// the Neural Engine. All values here are this network's. Add the .mlpackage to the target: Xcode compiles it into the application
// as @compiled.mlmodelc.
//
//     let network = try Network()
//     let answers = try network.run([@example])

import CoreML
@graphics
/// A tensor of the network: its sizes in order, 0 where a size is the caller's choice.
struct Port {
    let name: String
    let sizes: [Int]
    let type: MLMultiArrayDataType
}

/// Runs in one thread at a time.
final class Network {
    static let model = @file
    static let inputs = [
@inputs    ]
    static let outputs = [
@outputs    ]
    /// Of the answers in their order, where the model's data named them.
    static let classes: [String] = [
@classes    ]

    enum Failure: Error {
        case noModel
        case inputs(expected: Int)
        case values(of: String, expected: Int)
        case noOutput(String)
    }

    private let loaded: MLModel

    /// units: .all lets Core ML choose among processor, GPU and Neural Engine.
    init(in bundle: Bundle = .main, units: MLComputeUnits = .all) throws {
        guard let url = bundle.url(forResource: Network.model, withExtension: "mlmodelc") else { throw Failure.noModel }
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        loaded = try MLModel(contentsOf: url, configuration: configuration)
    }

    /// Real numbers in the order of `inputs` and of the model's tensors; outputs come in the order of `outputs`. sizes: of inputs that
    /// leave some open.
    func run(_ values: [[Float]], sizes: [[Int]] = Network.inputs.map { $0.sizes }) throws -> [[Float]] {
        guard values.count == Network.inputs.count, sizes.count == values.count else {
            throw Failure.inputs(expected: Network.inputs.count)
        }
        var given: [String: MLFeatureValue] = [:]
        for (place, port) in Network.inputs.enumerated() {
            given[port.name] = MLFeatureValue(multiArray: try filled(port, values[place], sizes[place].map { max($0, 1) }))
        }
        let found = try loaded.prediction(from: try MLDictionaryFeatureProvider(dictionary: given))
        return try Network.outputs.map { port in
            guard let array = found.featureValue(for: port.name)?.multiArrayValue else { throw Failure.noOutput(port.name) }
            return (0..<array.count).map { array[$0].floatValue }
        }
    }

    private func filled(_ port: Port, _ values: [Float], _ sizes: [Int]) throws -> MLMultiArray {
        let count = sizes.reduce(1, *)
        guard values.count == count else { throw Failure.values(of: port.name, expected: count) }
        let array = try MLMultiArray(shape: sizes.map { NSNumber(value: $0) }, dataType: port.type)
        if port.type == .float32 {
            array.dataPointer.withMemoryRebound(to: Float.self, capacity: count) { $0.update(from: values, count: count) }
        } else {
            for at in 0..<count { array[at] = NSNumber(value: values[at]) }
        }
        return array
    }
}
@pixels"""

FROM_IMAGE = r"""
/// A picture as input `@input`: channels @order, (pixel - mean) * norm. @framed
/// nil where the picture cannot be drawn. Core Graphics smooths by a filter of its own: pixels of much larger pictures differ a little
/// from those that the network was judged on.
func fromImage(_ picture: CGImage) -> [Float]? {
    let mean: [Float] = [@mean]
    let norm: [Float] = [@norm]
@frame
    var pixels = [UInt8](repeating: 0, count: 4 * rows * columns)
    let drawn = pixels.withUnsafeMutableBytes { bytes -> Bool in
        guard let context = CGContext(
            data: bytes.baseAddress, width: columns, height: rows, bitsPerComponent: 8, bytesPerRow: 4 * columns,
            space: CGColorSpace(name: CGColorSpace.sRGB)!, bitmapInfo: CGImageAlphaInfo.@alpha.rawValue) else { return false }
        context.interpolationQuality = .high
        // its origin is below: the rows that are cut off above lie beyond the top
        context.draw(picture, in: CGRect(x: -left, y: rows + top - high, width: wide, height: high))
        return true
    }
    guard drawn else { return nil }
    var values = [Float](repeating: 0, count: @channels * rows * columns)
    for at in 0..<(rows * columns) {
        let red = Float(pixels[4 * at]), green = Float(pixels[4 * at + 1]), blue = Float(pixels[4 * at + 2])
@values
    }
    return values
}
"""

CHANNEL = "        values[@index] = (@channel - mean[@c]) * norm[@c]"

KEPT = """    let rows = picture.height, columns = picture.width, high = rows, wide = columns, top = 0, left = 0"""

SHORT = """    let rows = @rows, columns = @columns
    let high = picture.height <= picture.width ? @side : @side * picture.height / picture.width
    let wide = picture.height <= picture.width ? @side * picture.width / picture.height : @side
    let top = Int((Double(high - rows) / 2).rounded(.toNearestOrEven)), left = Int((Double(wide - columns) / 2).rounded(.toNearestOrEven))"""

STRETCHED = """    let rows = @rows, columns = @columns, high = @high, wide = @wide
    let top = Int((Double(high - rows) / 2).rounded(.toNearestOrEven)), left = Int((Double(wide - columns) / 2).rounded(.toNearestOrEven))"""
