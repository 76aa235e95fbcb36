"""What MONAI's engines and bundles need from us."""

from luna_monai.engines.batch import PrepareCandidateBatch
from luna_monai.engines.config import current_config

__all__ = ["PrepareCandidateBatch", "current_config"]
