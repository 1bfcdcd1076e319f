"""Evaluate a model of your own with AutoAttack, the standard attacks, and a DataLoader.

python examples/evaluate_your_model.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import acl_plugin


def trained(images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """Return a small network, trained as any other."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 9, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        chosen = torch.randint(0, len(images), (128,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return model


def main(steps: int = 200, test_images: int = 100) -> acl_plugin.Evaluation:
    """Return the evaluation of a model on the last digits."""
    pixels, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    images = pixels.float().reshape(-1, 1, 8, 8) / 16
    model = trained(images[:-test_images], labels[:-test_images], steps)
    images, labels = images[-test_images:], labels[-test_images:]
    threat = acl_plugin.ThreatModel("Linf", 0.1)

    evaluation = acl_plugin.evaluate(model, images, labels, threat)
    print(evaluation)
    for verdict in evaluation.verdicts[:5]:
        print(f"image {verdict.index}, a {verdict.label}: broken by {verdict.broken_by}")

    loader = DataLoader(TensorDataset(images, labels), batch_size=50)
    suite = acl_plugin.evaluate_suite(model, loader, threat=threat, attacks=["FGSM", "PGD-20"])
    print(suite)
    return evaluation


if __name__ == "__main__":
    main()
