"""What a bundle carries to the device. Needs Python 3.10, TensorRT and NumPy, and nothing of Lathe: the files are
copied, with imports of each other alone (runtime/targets/jetson/shipping.py).
"""
