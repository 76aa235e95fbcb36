"""The network."""

from luna_monai.networks.batch_norm import AllReduceBatchNorm, synchronize_batch_norm
from luna_monai.networks.luna_model import BookLunaModel, LunaBlock, LunaModel
from luna_monai.networks.runtimes import load_network
from luna_monai.networks.weights import load_weights, with_weights

__all__ = [
    "AllReduceBatchNorm",
    "BookLunaModel",
    "LunaBlock",
    "LunaModel",
    "load_network",
    "load_weights",
    "synchronize_batch_norm",
    "with_weights",
]
