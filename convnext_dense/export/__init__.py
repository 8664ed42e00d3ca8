"""A trained model as one ONNX file, which is verified before it gets its name."""
