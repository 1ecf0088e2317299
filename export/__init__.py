"""unetrt.export: from a checkpoint to a self-describing ONNX file that has proved itself."""
