"""What is measured on an epoch's records, and by LUNA16's rules on a submission."""

from luna_monai.metrics.froc import FrocResult, evaluate_froc
from luna_monai.metrics.per_class import BOOK_METRICS, COUNTS, METRIC_NAMES, RANKING_METRICS, per_class_metrics
from luna_monai.metrics.records import CandidateRecords

__all__ = [
    "BOOK_METRICS",
    "COUNTS",
    "METRIC_NAMES",
    "RANKING_METRICS",
    "CandidateRecords",
    "FrocResult",
    "evaluate_froc",
    "per_class_metrics",
]
