"""Reading, writing and fitting weights; reading never runs code from a file."""

from distill.weights.files import read_weights, sha256_of, write_weights
from distill.weights.loading import load_into

__all__ = ["load_into", "read_weights", "sha256_of", "write_weights"]
