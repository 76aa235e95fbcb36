"""What MONAI's engines need: batches, inferers, metrics, handlers and processes."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "batch": ["AutocastInferer", "PrepareCandidateBatch", "has_bfloat16"],
        "evaluation": ["EvaluationFolder", "evaluation_dir"],
        "metrics": ["FROC_METRICS", "CandidateMetrics", "CheckLoss", "FrocMetrics", "key_metric"],
        "processes": [
            "BroadcastBuffers",
            "SeedEachEpoch",
            "data_parallel",
            "evaluation_sampler",
            "gather_objects",
            "launched",
            "local_device",
            "share_of_batch",
            "share_of_cores",
            "start_processes",
            "stop_processes",
            "wait_for_all",
        ],
        "progress": ["ProgressHandler", "enumerate_with_estimate"],
        "run_folder": ["LrSchedule", "RunFolder", "Validation"],
        "run_state": ["EarlyStopping", "RunState"],
        "logs": ["ConsoleHandler", "TensorBoardHandler"],
        "tracking": ["MLflowTracking"],
    },
)
