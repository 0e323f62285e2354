"""Running artifacts: sessions, the key/value cache, sampling, generation, text; needs ONNX Runtime, never PyTorch."""
