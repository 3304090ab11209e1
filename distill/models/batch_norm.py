"""Which layers keep statistics of batches: all that freezes, estimates or sums them asks here."""

from paddle import nn
from paddle.nn.layer.norm import _BatchNormBase

BATCH_NORMS = (_BatchNormBase, nn.BatchNorm)
"""`nn.BatchNorm1D` to `3D` and `SyncBatchNorm`, and the older `nn.BatchNorm`, which shares no base with them and which
many networks of PaddleClas are made of."""
