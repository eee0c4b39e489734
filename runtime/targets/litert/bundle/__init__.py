"""What lies beside a .tflite file for the developer of an application: Kotlin and C++ with this network's values, and a README."""
