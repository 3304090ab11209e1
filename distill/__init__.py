"""Knowledge distillation for image classification on PaddlePaddle."""

__version__ = "0.1.0"
