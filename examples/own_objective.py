"""Write an objective and train it in a bare loop: no trainer, no run folder, no configuration.

python examples/own_objective.py
"""

import torch

import acl_plugin
from acl_plugin.data import augment
from acl_plugin.data.batches import ShuffledBatches
from acl_plugin.losses.contrastive import nt_xent
from acl_plugin.models.spec import ModelSpec


class OneAdversarialView(acl_plugin.Objective):
    """NT-Xent between a benign view and an adversarial one, both in one norm bank."""

    norm_banks = ("shared",)  # names of the norm banks; the last one is probed
    attack_mode = "bank"  # the attack moves each sample away from its own key

    def terms(self, model, views, attack):
        with torch.no_grad():
            keys = model(views.b)
        a = attack.bank(model, views.a, keys, temperature=self.temperature)
        za, zb = model.views(a, views.b)
        return acl_plugin.Terms.weighted(nce=(1.0, nt_xent(za, zb, self.temperature)))


def main(epochs: int = 8, batch_size: int = 128, limit_train: int | None = None) -> list[float]:
    """Train on the digits; return the mean loss of each epoch."""
    torch.manual_seed(0)
    data = acl_plugin.datasets.load(acl_plugin.preset("digits", limit_train=limit_train).data)
    network = {"stem_width": 8, "channels": [16, 32, 64, 128]}
    spec = ModelSpec("resnet10t", network, "cifar", data.shape, data.mean, data.std)
    objective = OneAdversarialView(temperature=0.5)
    model = acl_plugin.Encoder(spec, objective.norm_banks, objective.projector)
    objective.setup(model)
    attack = acl_plugin.InnerAttack(acl_plugin.ThreatModel("Linf", 0.1), "PGD", steps=5)
    optimizer = torch.optim.AdamW(objective.param_groups(model), lr=2e-3)
    losses = []
    for epoch in range(epochs):
        objective.on_epoch(epoch, epochs)
        batches = ShuffledBatches(data.train, batch_size, seed=0, epoch=epoch)
        total = 0.0
        for pixels, _, _ in batches:
            images = pixels.float() / data.train.levels
            views = acl_plugin.Views(a=augment.views(images, "digits"), b=augment.views(images, "digits"))
            optimizer.zero_grad()
            total += objective.backward(model, views, attack).total.item()
            optimizer.step()
        losses.append(total / len(batches))
        print(f"epoch {epoch}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
