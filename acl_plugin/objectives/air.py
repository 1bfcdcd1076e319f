"""AIR: adversarial invariant regularization of ACL (Xu et al., NeurIPS 2023, arXiv 2305.00374)."""

from typing import Literal

from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.losses.contrastive import collapsed_nce, log_batch_softmax, nt_xent
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.objectives.schedules import staircase
from acl_plugin.registry import register
from acl_plugin.validation import require_not_negative, require_one_of

Fidelity = Literal["paper", "released", "normalized"]


def invariance(log_p: Tensor, log_q: Tensor, fidelity: Fidelity) -> Tensor:
    """Return KL(q || p) = sum_n q_n (log q_n - log p_n) of two distributions over the batch.

    Args:
        log_p, log_q: (B,) log-probabilities.
        fidelity: ``released`` returns sum_n q_n (log q_n - p_n), with a probability in place of a logarithm;
            ``normalized`` first scales both to sum 1.

    Returns:
        () divergence in nats.
    """
    if fidelity == "normalized":
        log_p, log_q = log_p.log_softmax(0), log_q.log_softmax(0)
    return (log_q.exp() * (log_q - (log_p.exp() if fidelity == "released" else log_p))).sum()


@register("acl_air")
class InvariantACL(Objective):
    """ACL-AIR: ACL with adversarial invariant regularization.

    L = NT-Xent(a, b) + NT-Xent(a', b') + lambda_1 SIR + lambda_2 AIR

    sigma(u, v) is the softmax over the batch of cos(u_n, v_n) / tau, and o the benign image without augmentation:
    SIR = KL(sigma(b, o) || sigma(a, o)), AIR = KL(sigma(b', o) sigma(b', b) || sigma(a', o) sigma(a', a)).

    Args:
        temperature: tau, above 0.
        standard, adversarial: lambda_1 and lambda_2.
        fidelity: ``released`` uses a probability where KL needs a logarithm (see ``invariance``), so that SIR is near
            -log B and AIR near 0. ``paper`` is the KL of the products as written, which do not sum to 1 and are
            O(1/B^2). ``normalized`` scales the products to distributions.

    Published: LARS lr 5, batch 512, 1000 epochs. `--lpaft air` adds its post-processing.

    Source: arXiv 2305.00374 and its authors' code.
    """

    norm_banks = ("clean", "adv")
    attack_mode = "pairwise"
    attacked_views, encoded_views = ("a", "b"), ("a", "b", "a'", "b'")
    cost = Cost(attacked=2, forwards=5, backwards=5)
    paper = "ACL-AIR, NeurIPS 2023, arXiv 2305.00374"
    weight = 0.0

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        standard: float = 0.5,
        adversarial: float = 0.5,
        fidelity: Fidelity = "paper",
    ) -> None:
        super().__init__(temperature=temperature)
        require_not_negative(standard=standard, adversarial=adversarial)
        require_one_of(("paper", "released", "normalized"), fidelity=fidelity)
        self.standard, self.adversarial, self.fidelity = standard, adversarial, fidelity

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        a_adv, b_adv = attack.pairwise(model, views.a, views.b, norm_bank="adv", temperature=self.temperature)
        a, b = model.views(views.a, views.b, "clean")
        adv_a, adv_b = model.views(a_adv, b_adv, "adv")
        o = model(views.images, "clean")

        def sigma(u: Tensor, v: Tensor) -> Tensor:
            return log_batch_softmax(u, v, self.temperature)

        sir = invariance(sigma(a, o), sigma(b, o), self.fidelity)
        air = invariance(
            sigma(adv_a, o) + sigma(adv_a, a),
            sigma(adv_b, o) + sigma(adv_b, b),
            self.fidelity,
        )
        level = collapsed_nce(len(o))
        return Terms.weighted(
            nce_clean=(1 - self.weight, nt_xent(a, b, self.temperature), level),
            nce_adv=(1 + self.weight, nt_xent(adv_a, adv_b, self.temperature), level),
            sir=(self.standard, sir),
            air=(self.adversarial, air),
        )


@register("dynacl_air")
class AnnealedInvariantACL(InvariantACL):
    """ACL-AIR with the annealed augmentation of DynACL.

    L = (1 - w) NT-Xent(a, b) + (1 + w) NT-Xent(a', b') + lambda_1 SIR + lambda_2 AIR

    The views have strength s = 1 - staircase(e - 1, E), and w = 2/3 (1 - s). There is no momentum encoder. The settings
    are those of ``acl_air``.

    Source: arXiv 2305.00374, with the schedules of DynACL (arXiv 2303.01289).
    """

    paper = "DynACL-AIR, NeurIPS 2023, arXiv 2305.00374"

    def on_epoch(self, epoch: int, epochs: int) -> None:
        self.strength = 1 - staircase(epoch, epochs)
        self.weight = (1 - self.strength) * 2 / 3
