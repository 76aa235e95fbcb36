"""Imports that are put off until something uses them."""

import subprocess
import sys

SCRIPT = """
import sys
from luna_monai.lazy import deferred_imports
with deferred_imports():
    import monai.bundle
    import torch._dynamo  # MONAI imports it where torchvision is installed
import torch
assert torch._dynamo.utils
early = {"mlflow", "matplotlib", "nibabel", "pydicom", "scipy.signal", "sklearn"} & set(sys.modules)
assert not early, early

from ignite.handlers.checkpoint import HAVE_ZERO, ZeroRedundancyOptimizer
from monai.data.image_reader import nib, pydicom
from monai.data.ultrasound_confidence_map import hilbert
from monai.handlers import mlflow_handler
from monai.visualize.utils import plt
assert HAVE_ZERO and not isinstance(3, ZeroRedundancyOptimizer)
assert abs(hilbert([1.0, 0.0, -1.0, 0.0])[0] - 1) < 1e-9
assert plt.figure().number == 1
assert nib.Nifti1Image and pydicom.dcmread

import matplotlib.pyplot
import mlflow
import torch.distributed.optim
assert mlflow_handler.mlflow.__version__ == mlflow.__version__
assert matplotlib.pyplot.fignum_exists(1)
assert isinstance(torch.distributed.optim.ZeroRedundancyOptimizer, type)
"""


def test_rarely_used_modules_of_monai_are_imported_on_use():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
