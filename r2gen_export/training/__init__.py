"""PyTorch: model, checkpoint, data, phantom studies, fit. Knows nothing of ONNX."""
