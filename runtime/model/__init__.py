"""Model files, read without an ONNX library: what they say of themselves, and whether they are safe to open."""
