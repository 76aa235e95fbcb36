"""Pictures and pages for people: matplotlib figures and one self-contained HTML file."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(__name__, {"prediction": ["PredictionPage"]})
