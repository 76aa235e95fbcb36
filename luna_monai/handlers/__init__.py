"""What engines do besides training: metrics, console, TensorBoard, weights and predictions."""

from luna_monai.handlers.best_epoch import BestEpoch
from luna_monai.handlers.console import ConsoleHandler, WorstCandidates
from luna_monai.handlers.early_stopping import EarlyStopping
from luna_monai.handlers.eta import ProgressHandler, enumerate_with_estimate
from luna_monai.handlers.evaluation import EvaluationFolder
from luna_monai.handlers.froc import FROC_METRICS, FrocMetrics
from luna_monai.handlers.metrics import CandidateMetrics, is_better
from luna_monai.handlers.predictions import ScanPredictions
from luna_monai.handlers.run_folder import RunFolder, set_aside_previous_run
from luna_monai.handlers.samples import TrainingSamples
from luna_monai.handlers.seed import SeedEachEpoch
from luna_monai.handlers.summary import RunSummary
from luna_monai.handlers.tensorboard import TensorBoardHandler, TensorBoardRun
from luna_monai.handlers.throughput import ThroughputHandler
from luna_monai.handlers.tracking import MLflowTracking

__all__ = [
    "FROC_METRICS",
    "BestEpoch",
    "CandidateMetrics",
    "ConsoleHandler",
    "EarlyStopping",
    "EvaluationFolder",
    "FrocMetrics",
    "MLflowTracking",
    "ProgressHandler",
    "RunFolder",
    "RunSummary",
    "ScanPredictions",
    "SeedEachEpoch",
    "TensorBoardHandler",
    "TensorBoardRun",
    "ThroughputHandler",
    "TrainingSamples",
    "WorstCandidates",
    "enumerate_with_estimate",
    "is_better",
    "set_aside_previous_run",
]
