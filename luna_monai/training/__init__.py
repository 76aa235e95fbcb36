"""What MONAI's engines need: batches, inferers, metrics, handlers and processes."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "batch": ["PrepareCandidateBatch"],
        "best_epoch": ["BestEpoch"],
        "config": ["current_config"],
        "console": ["ConsoleHandler", "WorstCandidates"],
        "early_stopping": ["EarlyStopping"],
        "eta": ["ProgressHandler", "enumerate_with_estimate"],
        "evaluation": ["EvaluationFolder"],
        "froc": ["FROC_METRICS", "FrocMetrics"],
        "inferer": ["AutocastInferer", "is_bfloat16_fast", "time_precisions"],
        "metrics": ["CandidateMetrics", "is_better"],
        "processes": [
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
        "run_folder": ["RunFolder", "set_aside_previous_run"],
        "samples": ["TrainingSamples"],
        "seed": ["SeedEachEpoch"],
        "summary": ["RunSummary"],
        "tensorboard": ["TensorBoardHandler", "TensorBoardRun"],
        "throughput": ["ThroughputHandler"],
        "tracking": ["MLflowTracking"],
    },
)
