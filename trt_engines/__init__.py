"""ONNX to TensorRT and TensorRT-RTX: so far, what of them this machine has."""

import r2gen_export.errors  # noqa: F401  its package turns the telemetry of libraries off before they are imported
