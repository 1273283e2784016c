"""torch to ONNX: vision encoder, decoder, parity gate, bundle writing."""
