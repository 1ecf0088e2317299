"""unetrt.export.adoption: from an ONNX file of another toolkit to a model file whose tiles are exact."""
