"""Predictions of a model for whole scans, and their output files."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "scan_dataset": ["ScanDataset", "ScanLoader"],
        "inferer": ["CandidateInferer", "PrepareScanBatch"],
        "heat_map": ["CandidateExplainer", "ScanExplanation"],
        "collector": ["DatasetFroc", "ScanPredictions"],
        "outputs": ["check_outputs", "write_dicom", "write_outputs"],
        "result": ["ModelFacts", "ScanPrediction", "default_weights", "describe_findings", "model_facts"],
    },
)
