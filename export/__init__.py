"""unetrt.export: from a checkpoint to a verified, self-describing ONNX file, and from that to packages.

- `exporter.export` writes an ONNX file: `graph` traces the network, `quantisation` makes it INT8.
- `gate.verify` compares the file with the network on real frames; a file that fails is not written.
- `adoption.adopt` makes a model file of an ONNX file of another toolkit.
- `packages.write` puts a model file into the form that other programs load.
"""
