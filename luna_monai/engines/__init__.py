"""What MONAI's engines and bundles need from us."""

from luna_monai.engines.batch import PrepareCandidateBatch
from luna_monai.engines.candidates import CandidateInferer, PrepareScanBatch
from luna_monai.engines.config import current_config
from luna_monai.engines.explain import CandidateExplainer, VoxelwiseGradCAM
from luna_monai.engines.inferer import AutocastInferer, is_bfloat16_fast, time_precisions
from luna_monai.engines.processes import (
    data_parallel,
    evaluation_sampler,
    gather_objects,
    launched,
    local_device,
    share_of_batch,
    share_of_cores,
    start_processes,
    stop_processes,
    wait_for_all,
)

__all__ = [
    "AutocastInferer",
    "CandidateExplainer",
    "CandidateInferer",
    "PrepareCandidateBatch",
    "PrepareScanBatch",
    "VoxelwiseGradCAM",
    "current_config",
    "data_parallel",
    "evaluation_sampler",
    "gather_objects",
    "is_bfloat16_fast",
    "launched",
    "local_device",
    "share_of_batch",
    "share_of_cores",
    "start_processes",
    "stop_processes",
    "time_precisions",
    "wait_for_all",
]
