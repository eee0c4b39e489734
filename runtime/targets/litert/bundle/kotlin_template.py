"""Text of the two Kotlin examples, with @names for what is this network's own ($ is Kotlin's)."""

PORTS = r"""
/**
 * A tensor of the file: its sizes in order, 0 where a size is the caller's choice. Where scale is not 0, it holds integers for
 * real numbers: real = scale * (q - zeroPoint).
 */
class Port(val name: String, val sizes: IntArray, val type: String, val scale: Float, val zeroPoint: Int) {
    fun quantized(real: Float, low: Int, high: Int): Int =
        if (scale == 0f) real.toInt()
        else (Math.rint((real / scale).toDouble()) + zeroPoint).coerceIn(low.toDouble(), high.toDouble()).toInt()

    fun real(q: Int): Float = if (scale == 0f) q.toFloat() else scale * (q - zeroPoint)
}

const val MODEL = @file

val INPUTS = arrayOf(
@inputs)

val OUTPUTS = arrayOf(
@outputs)

/** Of the answers in their order, where the model's data named them. */
val CLASSES = arrayOf<String>(
@classes)
"""

FROM_BITMAP = r"""
/**
 * A picture as input `@input`: channels @order, (pixel - mean) * norm. @framed
 * Values are in the order of the file's sizes. Bitmap's own scaling does not smooth as Pillow does where a picture becomes much smaller.
 */
fun fromBitmap(picture: Bitmap): FloatArray {
    val mean = floatArrayOf(@mean)
    val norm = floatArrayOf(@norm)
@frame
    val pixels = IntArray(rows * columns)
    scaled.getPixels(pixels, 0, columns, left, top, columns, rows)
    val values = FloatArray(@channels * rows * columns)
    for (at in pixels.indices) {
        val red = (pixels[at] shr 16 and 255).toFloat()
        val green = (pixels[at] shr 8 and 255).toFloat()
        val blue = (pixels[at] and 255).toFloat()
@values
    }
    return values
}
"""

CHANNEL = "        values[@index] = (@channel - mean[@c]) * norm[@c]"

KEPT = """    val rows = picture.height
    val columns = picture.width
    val scaled = picture
    val top = 0
    val left = 0"""

SHORT = """    val rows = @rows
    val columns = @columns
    val high = if (picture.height <= picture.width) @side else @side * picture.height / picture.width
    val wide = if (picture.height <= picture.width) @side * picture.width / picture.height else @side
    val scaled = Bitmap.createScaledBitmap(picture, wide, high, true)
    val top = Math.rint((high - rows) / 2.0).toInt()
    val left = Math.rint((wide - columns) / 2.0).toInt()"""

STRETCHED = """    val rows = @rows
    val columns = @columns
    val scaled = Bitmap.createScaledBitmap(picture, @wide, @high, true)
    val top = Math.rint((@high - rows) / 2.0).toInt()
    val left = Math.rint((@wide - columns) / 2.0).toInt()"""

INTERPRETER = r"""// @title
//
// Loads the network that lies in the application's assets, feeds it and reads its outputs, by LiteRT's Interpreter, which computes on
// the processor. All values here are this network's. build.gradle: implementation("com.google.ai.edge.litert:litert:2.1.4"), and
// androidResources { noCompress += "tflite" }.
//
//     Network(context).use { network ->
//         val answers = network.run(@example)
//     }

package model

import android.content.Context@bitmap
import org.tensorflow.lite.Interpreter
import java.io.FileInputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
@ports@pixels
/** Runs in one thread at a time. threads: of the processor, as many as there are fast cores, 2 to 4. */
class Network(context: Context, threads: Int = 2) : AutoCloseable {
    private val interpreter = Interpreter(mapped(context), Interpreter.Options().setNumThreads(threads))

    /** Sizes of an input that leaves some open, such as 4, 32, 32, 3 for a batch of 4; they stay until they are set again. */
    fun resize(input: Int, vararg sizes: Int) {
        interpreter.resizeInput(input, sizes)
        interpreter.allocateTensors()
    }

    /** Real numbers in the order of INPUTS and of the file's sizes; outputs come in the order of OUTPUTS. */
    fun run(vararg inputs: FloatArray): List<FloatArray> {
        require(inputs.size == INPUTS.size) { "the network has ${INPUTS.size} inputs" }
        val given = Array<Any>(INPUTS.size) { filled(INPUTS[it], inputs[it]) }
        interpreter.allocateTensors()
        val buffers = OUTPUTS.indices.map { direct(interpreter.getOutputTensor(it).numBytes()) }
        interpreter.runForMultipleInputsOutputs(given, buffers.withIndex().associate { it.index to it.value as Any })
        return OUTPUTS.indices.map { reals(OUTPUTS[it], buffers[it]) }
    }

    override fun close() = interpreter.close()

    private fun filled(port: Port, values: FloatArray): ByteBuffer {
        val buffer = direct(values.size * bytes(port))
        for (value in values) {
            when (port.type) {
                "float32" -> buffer.putFloat(value)
                "int8" -> buffer.put(port.quantized(value, -128, 127).toByte())
                "uint8" -> buffer.put(port.quantized(value, 0, 255).toByte())
                "int16" -> buffer.putShort(port.quantized(value, -32768, 32767).toShort())
                "int32" -> buffer.putInt(value.toInt())
                "int64" -> buffer.putLong(value.toLong())
                "bool" -> buffer.put((if (value != 0f) 1 else 0).toByte())
                else -> error("${port.name}: make the bytes of ${port.type} yourself")
            }
        }
        buffer.rewind()
        return buffer
    }

    /** Integers of 32 and 64 bits become floats, which are exact to 2^24. */
    private fun reals(port: Port, buffer: ByteBuffer): FloatArray {
        buffer.rewind()
        return FloatArray(buffer.capacity() / bytes(port)) {
            when (port.type) {
                "float32" -> buffer.getFloat()
                "int8" -> port.real(buffer.get().toInt())
                "uint8" -> port.real(buffer.get().toInt() and 255)
                "int16" -> port.real(buffer.getShort().toInt())
                "int32" -> buffer.getInt().toFloat()
                "int64" -> buffer.getLong().toFloat()
                "bool" -> buffer.get().toFloat()
                else -> error("${port.name}: read the bytes of ${port.type} yourself")
            }
        }
    }

    private fun bytes(port: Port): Int = when (port.type) {
        "int64", "float64" -> 8
        "float32", "int32" -> 4
        "int16", "float16" -> 2
        else -> 1
    }

    private fun direct(size: Int): ByteBuffer = ByteBuffer.allocateDirect(size).order(ByteOrder.nativeOrder())

    private fun mapped(context: Context): ByteBuffer = context.assets.openFd(MODEL).use { asset ->
        FileInputStream(asset.fileDescriptor).use { stream ->
            stream.channel.map(FileChannel.MapMode.READ_ONLY, asset.startOffset, asset.declaredLength)
        }
    }
}
"""

COMPILED = r"""// @title
//
// Loads the network that lies in the application's assets, feeds it and reads its outputs, by LiteRT's CompiledModel, which computes on
// the processor, the GPU or the NPU. All values here are this network's. build.gradle:
// implementation("com.google.ai.edge.litert:litert:2.1.4").
//
//     Network(context, Accelerator.GPU, Accelerator.CPU).use { network ->
//         val answers = network.run(@example)
//     }

package model

import android.content.Context@bitmap
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer
@ports@pixels
/** Runs in one thread at a time, at the sizes that the file states, where an open batch is 1. */
class Network(context: Context, vararg accelerators: Accelerator) : AutoCloseable {
    private val compiled = CompiledModel.create(
        context.assets, MODEL, CompiledModel.Options(if (accelerators.isEmpty()) setOf(Accelerator.CPU) else accelerators.toSet()))
    private val given = INPUTS.associate { it.name to compiled.createInputBuffer(it.name) }
    private val found = OUTPUTS.associate { it.name to compiled.createOutputBuffer(it.name) }

    /** Real numbers in the order of INPUTS and of the file's sizes; outputs come in the order of OUTPUTS. */
    fun run(vararg inputs: FloatArray): List<FloatArray> {
        require(inputs.size == INPUTS.size) { "the network has ${INPUTS.size} inputs" }
        for ((place, port) in INPUTS.withIndex()) write(given.getValue(port.name), port, inputs[place])
        compiled.run(given, found)
        return OUTPUTS.map { read(found.getValue(it.name), it) }
    }

    override fun close() {
        for (buffer in given.values + found.values) buffer.close()
        compiled.close()
    }

    private fun write(buffer: TensorBuffer, port: Port, values: FloatArray) = when (port.type) {
        "float32" -> buffer.writeFloat(values)
        "int8" -> buffer.writeInt8(ByteArray(values.size) { port.quantized(values[it], -128, 127).toByte() })
        "int32" -> buffer.writeInt(IntArray(values.size) { values[it].toInt() })
        "int64" -> buffer.writeLong(LongArray(values.size) { values[it].toLong() })
        "bool" -> buffer.writeBoolean(BooleanArray(values.size) { values[it] != 0f })
        else -> error("${port.name}: CompiledModel's buffers take no ${port.type} in Kotlin; use the Interpreter")
    }

    /** Integers of 32 and 64 bits become floats, which are exact to 2^24. */
    private fun read(buffer: TensorBuffer, port: Port): FloatArray = when (port.type) {
        "float32" -> buffer.readFloat()
        "int8" -> buffer.readInt8().let { bytes -> FloatArray(bytes.size) { port.real(bytes[it].toInt()) } }
        "int32" -> buffer.readInt().let { whole -> FloatArray(whole.size) { whole[it].toFloat() } }
        "int64" -> buffer.readLong().let { whole -> FloatArray(whole.size) { whole[it].toFloat() } }
        "bool" -> buffer.readBoolean().let { truths -> FloatArray(truths.size) { if (truths[it]) 1f else 0f } }
        else -> error("${port.name}: CompiledModel's buffers give no ${port.type} in Kotlin; use the Interpreter")
    }
}
"""
