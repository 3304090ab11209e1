"""A trained student as files that other programs run: Paddle Inference, ONNX, safetensors."""
