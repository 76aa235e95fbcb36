"""Figures and self-contained HTML pages of predictions, runs and cross-validations."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(__name__, {"prediction": ["PredictionPage"]})
