"""The target `jetson`: a folder that the owner of a Jetson builds an engine from, on the device."""
