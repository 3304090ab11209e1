"""Fast forward passes of frozen networks: those of `distill.models`, ONNX files and programs of Paddle Inference."""
