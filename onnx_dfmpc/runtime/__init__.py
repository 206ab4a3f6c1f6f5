"""The only room that runs models: ONNX Runtime sessions, whole and piece by piece."""
