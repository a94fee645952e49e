"""Networks for other programs and from them: ONNX, PyTorch, scikit-learn and C, one module each."""
