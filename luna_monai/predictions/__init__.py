"""What a model says about the candidates of a scan, and the files that say so."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "points": ["CandidateList"],
        "scan_dataset": ["ScanDataset"],
        "inferer": ["CandidateInferer", "PrepareScanBatch"],
        "explainer": ["CandidateExplainer", "VoxelwiseGradCAM"],
        "scan_predictions": ["ScanPredictions"],
        "dicom_sr": ["check_structured_report", "structured_report", "write_structured_report"],
        "explanation": ["HeatMap", "ScanExplanation", "explain_scan", "write_heat_map"],
        "model": ["default_weights", "model_facts"],
        "outputs": ["check_outputs", "write_outputs"],
        "result": ["ModelFacts", "ScanPrediction"],
    },
)
