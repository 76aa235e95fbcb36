"""The lung-nodule classifier of *Deep Learning with PyTorch*, chapter 11, rebuilt on MONAI."""

from importlib.metadata import version

__version__ = version("luna-monai")
