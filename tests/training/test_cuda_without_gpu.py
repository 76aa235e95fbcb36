"""What can be told of GPUs where there is none.

Tensors on torch's device "meta" have a shape and strides but no data. What is copied there, and whether the host would
wait for it, is what would be copied to a GPU.
"""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from luna_monai.errors import find_luna_error
from luna_monai.networks import LunaModel
from luna_monai.training import PrepareCandidateBatch, processes
from luna_monai.training.processes import data_parallel
from luna_monai.transforms import RandAugmentCandidates

ELSEWHERE = torch.device("meta")


class FromValues(TorchFunctionMode):
    """Records where a tensor is made from Python numbers, which needs a copy from the CPU."""

    def __init__(self, background):
        super().__init__()
        self.background = background

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor) and result.device == ELSEWHERE:
            self.background.append(False)
        return result


class Copies(TorchDispatchMode):
    """Records for each copy between CPU and GPU whether the CPU continues in the meantime."""

    def __init__(self):
        super().__init__()
        self.background = []
        self.from_values = FromValues(self.background)

    def __enter__(self):
        self.from_values.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.from_values.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.device for tensor in tensors}) > 1:
            self.background.append((kwargs or {}).get("non_blocking") is True)
        return result


@pytest.fixture
def batch():
    return {"image": torch.zeros(5, 1, 32, 48, 48, dtype=torch.int16), "label": torch.zeros(5, dtype=torch.int64)}


@pytest.fixture
def augmentation():
    return RandAugmentCandidates(flip=True, shift=1.2, scale=0.1, rotate=180, offset=15, noise=15)


def test_a_training_batch_is_made_on_the_gpu_without_waiting_for_it(batch, augmentation):
    with Copies() as copies:
        image, label = PrepareCandidateBatch(augmentation)(batch, ELSEWHERE, non_blocking=True)
    assert image.device == label.device == ELSEWHERE
    assert copies.background == [True, True]  # the voxels and the labels, and nothing else


def test_augmented_batches_have_the_strides_of_others(batch, augmentation):
    # One channel is contiguous in any layout; by its strides a GPU chooses how batch normalisation is computed.
    plain, _ = PrepareCandidateBatch()(batch, "cpu")
    assert plain.stride() == (73728, 1, 2304, 48, 1)
    for augment in (augmentation, RandAugmentCandidates(flip=True), RandAugmentCandidates(flip=False, noise=15)):
        assert PrepareCandidateBatch(augment)(batch, "cpu")[0].stride() == plain.stride()


def test_out_of_memory_is_one_line_with_advice():
    message = (
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.31 GiB is "
        "free. Including non-PyTorch memory, this process has 77.78 GiB memory in use. Of the allocated memory …"
    )
    try:
        try:
            raise torch.OutOfMemoryError(message)
        except torch.OutOfMemoryError as error:
            raise RuntimeError("Failed to evaluate ConfigExpression") from error
    except RuntimeError as error:
        found = find_luna_error(error)
    assert str(found) == (
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.31 GiB is "
        "free; reduce batch_size"
    )


@pytest.mark.parametrize(("candidates", "parts"), [(1, 1), (3640, 1), (3641, 2), (4096, 2), (7281, 3), (8192, 3)])
def test_no_tensor_has_more_elements_than_cuda_can_index(candidates, parts):
    network, sizes, whole = LunaModel().to(ELSEWHERE), [], []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(lambda _, __, result: sizes.append(result.numel()))
    network.tail_batchnorm.register_forward_hook(lambda _, __, result: whole.append(len(result)))
    assert network(torch.empty(candidates, 1, 32, 48, 48, device=ELSEWHERE)).shape == (candidates, 2)
    assert max(sizes) < 2**31
    assert (len(sizes), whole) == (8 * parts, [candidates])


def test_sync_batchnorm_keeps_the_parameters_of_the_optimizer(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(processes, "DistributedDataParallel", lambda network, **_: network)
    network = LunaModel().to(memory_format=torch.channels_last_3d)
    before = dict(network.named_parameters()) | dict(network.named_buffers())
    image = torch.randn(2, 1, 32, 48, 48) * 500
    with torch.inference_mode():
        expected = network.eval()(image)
        synchronized = data_parallel(network, torch.device("cuda:0"))
        assert torch.equal(synchronized(image), expected)
    assert synchronized is network
    assert isinstance(network.tail_batchnorm, torch.nn.SyncBatchNorm)
    after = dict(network.named_parameters()) | dict(network.named_buffers())
    assert before.keys() == after.keys()
    assert all(after[name] is value for name, value in before.items())
