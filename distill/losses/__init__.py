"""Losses: one method a file, each a pure function of tensors and numbers; `pipeline` puts them together."""
