"""What a model says about the candidates of a scan, and the files that say so."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "points": ["CandidateList"],
        "scan_dataset": ["ScanDataset", "ScanLoader"],
        "inferer": ["CandidateInferer", "PrepareScanBatch"],
        "heat_map": ["CandidateExplainer", "ScanExplanation"],
        "collector": ["ScanPredictions"],
        "dataset_froc": ["DatasetFroc"],
        "dicom_objects": ["write_segmentation", "write_structured_report"],
        "model": ["ModelFacts", "default_weights", "model_facts"],
        "outputs": ["check_outputs", "write_outputs"],
        "result": ["ScanPrediction", "describe_findings"],
    },
)
