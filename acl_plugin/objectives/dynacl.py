"""DynACL: ACL with augmentation that weakens during training (Luo et al., ICLR 2023, arXiv 2303.01289)."""

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.losses.contrastive import collapsed_nce, nt_xent
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.objectives.branches import Momentum, Pair
from acl_plugin.objectives.schedules import staircase
from acl_plugin.registry import register
from acl_plugin.validation import require_not_negative, require_share


@register("dynacl")
class DynACL(Objective):
    """DynACL: dual-stream ACL with augmentation that weakens during training.

    L = ((2 - w) NT-Xent(a, b) + w NT-Xent(a', b')) / 2

    In epoch e of E, counted from 1, the views have strength 1 - staircase(e - 1, E), and w = 1 + rate staircase(e, E),
    at most 2. View a is encoded by the encoder and view b by its momentum copy, which is the one kept after training.
    The attack perturbs both views.

    Args:
        temperature: tau, above 0.
        momentum: momentum of the copy, in [0, 1]; part of the released code. None is DynACL-RCS, as in RCS's code: one
            encoder for both views, and w = 1 + rate (1 - strength), which changes an epoch later.
        rate: slope of w.

    Published: LARS lr 5, batch 512, 1000 epochs. `--lpaft dynacl` adds its post-processing.

    Source: arXiv 2303.01289 and its authors' code.
    """

    norm_banks = ("clean", "adv")
    attack_mode = "pairwise"
    attacked_views: tuple[str, ...] = ("a", "b")
    encoded_views: tuple[str, ...] = ("a", "a'")
    cost = Cost(attacked=2, forwards=4, backwards=2)
    paper = "DynACL, ICLR 2023, arXiv 2303.01289"
    weight = 1.0

    def __init__(self, *, temperature: float = 0.5, momentum: float | None = 0.99, rate: float = 2 / 3) -> None:
        super().__init__(temperature=temperature)
        require_not_negative(rate=rate)
        self.momentum, self.rate = momentum, rate
        if momentum is None:
            self.encoded_views, self.cost = ("a", "b", "a'", "b'"), Cost(attacked=2, forwards=4, backwards=4)
        else:
            require_share(momentum=momentum)

    def setup(self, model: EncoderProtocol) -> None:
        if self.momentum is not None:
            self.copy = Momentum(model, self.momentum)

    def on_epoch(self, epoch: int, epochs: int) -> None:
        self.strength = 1 - staircase(epoch, epochs)
        self.weight = min(1 + self.rate * staircase(epoch + (self.momentum is not None), epochs), 2.0)

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        both = model if self.momentum is None else Pair(model, self.copy)
        a, b = attack.pairwise(both, views.a, views.b, norm_bank="adv", temperature=self.temperature)
        clean_a, clean_b = both.views(views.a, views.b, "clean")
        adv_a, adv_b = both.views(a, b, "adv")
        if self.momentum is not None:
            if a.requires_grad:  # views of a free attack, whose gradient comes through the copy as well
                self.copy.renew()
            self.copy.follow(model)  # before the optimizer step of this loss
        level = collapsed_nce(len(a))
        return Terms.weighted(
            nce_clean=((2 - self.weight) / 2, nt_xent(clean_a, clean_b, self.temperature), level),
            nce_adv=(self.weight / 2, nt_xent(adv_a, adv_b, self.temperature), level),
        )

    def downstream(self, model: EncoderProtocol) -> EncoderProtocol:
        return model if self.momentum is None else self.copy.encoder
