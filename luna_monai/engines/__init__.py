"""What MONAI's engines and bundles need from us."""

from luna_monai.engines.batch import PrepareCandidateBatch
from luna_monai.engines.candidates import CandidateInferer, PrepareScanBatch
from luna_monai.engines.config import current_config
from luna_monai.engines.inferer import AutocastInferer, is_bfloat16_fast

__all__ = [
    "AutocastInferer",
    "CandidateInferer",
    "PrepareCandidateBatch",
    "PrepareScanBatch",
    "current_config",
    "is_bfloat16_fast",
]
