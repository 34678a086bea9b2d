"""Generators as self-contained files, ONNX or of torch.export, that say what they are."""
