"""The network."""

from luna_monai.networks.luna_model import BookLunaModel, LunaBlock, LunaModel

__all__ = ["BookLunaModel", "LunaBlock", "LunaModel"]
