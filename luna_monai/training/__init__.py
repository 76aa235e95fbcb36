"""Components for MONAI's engines: batch preparation, inferers, metrics, handlers and distributed processes."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "batch": ["AutocastInferer", "PrepareCandidateBatch", "has_bfloat16"],
        "evaluation": ["EvaluationFolder", "evaluation_dir"],
        "metrics": ["FROC_METRICS", "CandidateMetrics", "CheckLoss", "FrocMetrics", "key_metric"],
        "processes": ["BroadcastBuffers", "SeedEachEpoch"],
        "run_folder": ["LrSchedule", "RunFolder", "Validation"],
        "run_state": ["EarlyStopping", "RunState"],
        "logs": ["ConsoleHandler", "ProgressHandler", "TensorBoardHandler"],
        "tracking": ["MLflowTracking", "sqlite_uri"],
    },
)
