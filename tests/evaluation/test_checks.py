import pytest
import torch
from torch import nn

from acl_plugin.errors import UsageError
from acl_plugin.evaluation import checks
from acl_plugin.evaluation.checks import MOST, check_classifier, largest_batch
from acl_plugin.models.encoder import Classifier
from conftest import spec

CPU = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Classifier(spec(classes="0123456789")).eval()


@pytest.fixture
def images():
    return torch.rand(16, 1, 8, 8)


def test_a_sound_classifier_passes_and_is_left_alone(model, images):
    state = torch.get_rng_state()
    check_classifier(model, images)
    check_classifier(model, images[:1])
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


class Noisy(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) + torch.rand(len(x), 10)


class Infinite(Noisy):
    def forward(self, x):
        return self.model(x) / 0


class ByBatch(Noisy):
    """Normalizes by the batch, as a norm layer without running statistics does."""

    def forward(self, x):
        return self.model(x - x.mean())


class Twice(Noisy):
    def forward(self, x):
        return self.model(x), x


def training(model):
    return model.train()


def dropout(model):
    wrapped = nn.Sequential(model, nn.Dropout(0.5)).eval()
    wrapped[1].train()
    return wrapped


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (training, "in training mode .*call eval"),
        (dropout, r"in training mode \(1\)"),
        (lambda m: nn.Sequential(m, nn.Softmax(1)).eval(), "gives probabilities; .*leave the softmax out"),
        (lambda m: Noisy(m).eval(), "other logits for the same images"),
        (lambda m: Infinite(m).eval(), "not finite"),
        (lambda m: ByBatch(m).eval(), "depend on the other images of its batch"),
        (lambda m: nn.Sequential(m, nn.Flatten(0)).eval(), r"gives \(160,\) for 16 images"),
        (lambda m: Twice(m).eval(), "gives tuple for 16 images"),
    ],
)
def test_unsound_classifiers_are_refused(model, images, change, message):
    with pytest.raises(UsageError, match=message) as error:
        check_classifier(change(model), images)
    assert error.value.parameter == "model"


def test_images_that_were_normalized_outside_are_refused(model, images):
    with pytest.raises(UsageError, match=r"test images in .*: allowed is \[0, 1\]; normalize inside the model"):
        check_classifier(model, (images - 0.5) / 0.25)


@pytest.mark.e2e
def test_the_batch_size_falls_with_what_a_network_keeps(model, monkeypatch):
    assert largest_batch(model, (1, 8, 8), CPU) == MOST
    large = Classifier(spec((3, 64, 64), "resnet18", {}, "01", "native")).eval()

    class Repeated(nn.Module):
        def forward(self, x):
            for _ in range(40):
                x = torch.relu(x.repeat(1, 1, 2, 2)[..., :256, :256])
            return x.mean((2, 3))

    assert largest_batch(large, (3, 64, 64), CPU) >= 1
    monkeypatch.setattr(checks, "memory", lambda device: 2**30)
    assert largest_batch(model, (1, 8, 8), CPU) == MOST
    assert largest_batch(Repeated(), (3, 64, 64), CPU) == 2**28 // (40 * 3 * 256**2 * 4)


def test_checks_work_in_inference_mode(model, images):
    """As in Lightning's validate and test."""
    outside = largest_batch(model, (1, 8, 8), CPU)
    with torch.inference_mode():
        check_classifier(model, images.clone())
        assert largest_batch(model, (1, 8, 8), CPU) == outside
