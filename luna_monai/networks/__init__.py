"""The network, its weights and its exports."""

from luna_monai.networks.luna_model import BookLunaModel, LunaBlock, LunaModel
from luna_monai.networks.weights import check_network, load_network, load_weights, with_weights

__all__ = ["BookLunaModel", "LunaBlock", "LunaModel", "check_network", "load_network", "load_weights", "with_weights"]
