"""What a model says about the candidates of a scan, and the files that say so."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "result": ["ModelFacts", "ScanPrediction"],
    },
)
