"""LunaModel is the book's network."""

import math

import numpy as np
import pytest
import torch

from luna_monai.networks import BookLunaModel, LunaModel


@pytest.fixture
def book_state(shared_data):
    return torch.load(shared_data / "book" / "luna_model_2020.state", map_location="cpu", weights_only=True)[
        "model_state"
    ]


def test_published_weights_classify_real_crops(shared_data, book_state):
    model = LunaModel().eval()
    model.load_state_dict(book_state, strict=True)
    with np.load(shared_data / "crops.npz", allow_pickle=False) as crops:
        image = torch.from_numpy(crops["hu"]).float().clamp(-1000, 1000)[:, None]
        is_nodule = crops["is_nodule"]
    with torch.no_grad():
        probability = torch.softmax(model(image), 1)[:, 1].numpy()
    assert (probability[is_nodule] >= 0.97).all()
    assert (probability[~is_nodule] < 0.001).all()


def test_book_pair_and_logits_share_one_state_dict():
    model, book_model = LunaModel().eval(), BookLunaModel().eval()
    book_model.load_state_dict(model.state_dict(), strict=True)
    image = torch.randn(2, 1, 32, 48, 48) * 500
    logits, probabilities = book_model(image)
    torch.testing.assert_close(logits, model(image))
    torch.testing.assert_close(probabilities, torch.softmax(logits, 1))


def test_initialisation_is_the_books():
    torch.manual_seed(0)
    model = LunaModel(conv_channels=32)  # wide, so that the statistics below are tight
    convolution = model.block4.conv2
    fan_out = convolution.out_channels * 27
    assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.02)
    bias = convolution.bias
    bound = 1 / math.sqrt(fan_out)
    assert bias.mean().item() == pytest.approx(-bound, rel=0.25)
    assert bias.std().item() == pytest.approx(bound, rel=0.25)


def test_layout_in_memory_does_not_change_the_result():
    model = LunaModel().eval()
    image = torch.randn(3, 1, 32, 48, 48) * 500
    with torch.no_grad():
        expected = model(image)
        actual = model.to(memory_format=torch.channels_last_3d)(image.to(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_model_can_be_scripted():
    model = LunaModel().eval()
    image = torch.randn(2, 1, 32, 48, 48)
    torch.testing.assert_close(torch.jit.script(model)(image), model(image))


@pytest.mark.parametrize(("training", "batch_norm"), [(True, False), (True, True), (False, False)])
def test_splitting_a_batch_does_not_change_the_result(training, batch_norm):
    image, label = torch.randn(7, 1, 32, 48, 48) * 500, torch.arange(7) % 2
    logits, gradients, statistics, sizes = [], [], [], []
    for split_size in (None, 3):
        torch.manual_seed(0)
        model = LunaModel(conv_channels=2, split_size=split_size, batch_norm=batch_norm).train(training)
        model.block1.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
        with torch.set_grad_enabled(training):
            logits.append(model(image))
        if training:
            torch.nn.functional.cross_entropy(logits[-1], label).backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
        statistics.append(model.tail_batchnorm.running_mean)
    assert sizes == [7, 3, 2, 2]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients[1:], gradients[:1], rtol=1e-3, atol=1e-3)
    assert torch.equal(*statistics)


def test_batches_stay_whole_in_exports_and_for_grad_cam():
    model, image = LunaModel(conv_channels=1, split_size=2).eval(), torch.randn(5, 1, 32, 48, 48)
    with torch.no_grad():
        traced = torch.jit.trace(model, image[:3])
        torch.testing.assert_close(traced(image), model(image))
    assert "tensor_split" not in str(traced.inlined_graph)
    sizes = []
    model.block1.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    model(image)  # gradients are wanted
    assert sizes == [5]


def test_batch_norm_becomes_part_of_the_books_network():
    torch.manual_seed(0)
    image = torch.randn(6, 1, 32, 48, 48) * 300 - 500
    trained = LunaModel(conv_channels=2, batch_norm=True)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    for _ in range(3):
        torch.nn.functional.cross_entropy(trained(image), torch.arange(6) % 2).backward()
        optimizer.step()
    with torch.no_grad():
        expected = trained.eval()(image)
        folded = trained.folded()
        assert folded.state_dict().keys() == LunaModel().state_dict().keys()
        for state in (folded.state_dict(), trained.state_dict()):  # as in model.pt and in checkpoint.pt
            for model in (LunaModel(conv_channels=2), LunaModel(conv_channels=2, batch_norm=True)):
                model.eval().load_state_dict(state)
                torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-4)
                assert model.state_dict().keys() == state.keys()
    for model, state in ((LunaModel(conv_channels=2), trained.state_dict()), (trained, folded.state_dict())):
        with pytest.raises(RuntimeError, match=r"block2\.norm1\.weight"):  # a network that is trained keeps its form
            model.train().load_state_dict(state)
    assert expected.std(dim=0).min() > 0.01
    assert trained.block2.norm1.num_batches_tracked > 0  # the network that is trained stays as it is
