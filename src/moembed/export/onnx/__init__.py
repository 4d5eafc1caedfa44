"""ONNX files that onnxruntime runs."""
