"""ONNX to TensorRT and TensorRT-RTX: so far, what of them this machine has."""
