"""What is measured on an epoch's records, and by LUNA16's rules on a submission."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "froc": ["FrocResult", "evaluate_froc"],
        "per_class": ["METRIC_NAMES", "per_class_metrics"],
    },
)
