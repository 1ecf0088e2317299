"""Model files, read without an ONNX library: the spec that they carry, and whether an engine may open them."""
