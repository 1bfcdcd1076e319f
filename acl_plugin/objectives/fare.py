"""FARE: unsupervised adversarial finetuning of a trained encoder (Schlarmann et al., ICML 2024, arXiv 2402.12336)."""

from typing import Literal

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.errors import UsageError
from acl_plugin.losses.regression import squared_distance_rows
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.objectives.branches import Teacher
from acl_plugin.registry import register
from acl_plugin.validation import require_one_of, require_share


@register("fare")
class FARE(Objective):
    """FARE: adversarial regression on the embeddings of the trained encoder that training starts from.

    L = w ||f(x) - f0(x)||^2 + (1 - w) ||f(x') - t||^2, with t = f0(x), or f(x) without gradient (TRADES)

    f0 is a frozen copy of the encoder as it is at the start, in eval mode. Embeddings are the features, not normalized,
    and the squared distances are sums over their dimensions. x' maximizes ||f(x') - f0(x)||^2. Benign and adversarial
    images are two batches in one norm bank. Use it on trained weights (`--pretrained`, `--pretrained-file` or
    `--init`): the trainer rejects random ones.

    Args:
        benign: w, in [0, 1]; 0 as published. With 0 and no TRADES the benign images are not encoded by f.
        trades: regress adversarial embeddings on the benign ones of the same step; needs benign above 0, as constant
            features would be optimal otherwise.
        view: ``images`` are not augmented, as published; ``weak`` takes a random weak view.

    Published: attack MomentumPGD with 10 steps of 1/255 at eps 2/255 or 4/255, AdamW lr 1e-5, weight decay 1e-4, batch
    128, 20,000 steps, the first 1,400 with a linear warm-up, cosine. The released training attacks from a random start.

    Source: arXiv 2402.12336, equation 3, and its authors' code for w and TRADES.
    """

    norm_banks = ("shared",)
    projector = "identity"
    needs: tuple[str, ...] = ()
    attack_mode = "scalar"
    attacked_views: tuple[str, ...] = ("images",)
    encoded_views: tuple[str, ...] = ("images'",)
    cost = Cost(attacked=1, forwards=2, backwards=1)
    paper = "FARE, ICML 2024, arXiv 2402.12336"
    needs_start = finetunes = True

    def __init__(
        self, *, benign: float = 0.0, trades: bool = False, view: Literal["images", "weak"] = "images"
    ) -> None:
        super().__init__()
        require_share(benign=benign)
        require_one_of(("images", "weak"), view=view)
        if trades and not benign:
            message = "trades needs benign above 0: without it, constant features would be optimal"
            raise UsageError(message, parameter="benign", given=benign, allowed="a share above 0 up to 1")
        self.benign, self.trades, self.view = benign, trades, view
        self.attacked_views, self.encoded_views = (view,), (f"{view}'",)
        if view != "images":
            self.needs = (view,)
        if benign:
            self.encoded_views = (view, f"{view}'")
            self.cost = Cost(attacked=1, forwards=3, backwards=2)

    def setup(self, model: EncoderProtocol) -> None:
        self.start = Teacher(model)

    def has_adversarial_loss(self) -> bool:
        return self.benign < 1

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        x = getattr(views, self.view)
        target = self.start(x)
        moved = attack.scalar(model, x, lambda images: 1 + squared_distance_rows(model.features(images), target))
        parts = {}
        if self.benign:
            benign = model.features(x)
            parts["distillation"] = (self.benign, squared_distance_rows(benign, target).mean())
            target = benign.detach() if self.trades else target
        adversarial = squared_distance_rows(model.features(moved), target).mean()
        return Terms.weighted(**parts, robustness=(1 - self.benign, adversarial))
