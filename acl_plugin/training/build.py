"""Model, objective and attack of a pretraining, built from its configuration."""

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import RunConfig
from acl_plugin.data.images import DataSet
from acl_plugin.models.encoder import Encoder
from acl_plugin.models.spec import ModelSpec
from acl_plugin.registry import create_objective
from acl_plugin.runtime import seeding
from acl_plugin.runtime.device import training_device
from acl_plugin.runtime.seeding import INITIALISATION, mixed_seed
from acl_plugin.training.batch_size import check_sizes
from acl_plugin.training.module import Pretraining


def build(config: RunConfig, data: DataSet) -> "Pretraining":
    """Model, objective and attack of a run, with everything checked that can be checked before training.

    Raises:
        UsageError: for names, settings or sizes that do not fit.
    """
    training_device(config.accelerator)  # or it is told now that there is none
    threat = ThreatModel.parse(config.norm, config.eps)
    attack = InnerAttack(threat, config.attack, config.attack_steps, config.attack_kwargs)
    objective = create_objective(config.objective, **config.objective_kwargs)
    attack.check(objective.attack_view, data.shape[0])
    check_sizes(config, data)
    with seeding.private(mixed_seed(config.seed, INITIALISATION)):
        model = Encoder(model_spec(config, data), objective.routes, objective.projector)
        objective.setup(model)
    objective.check_images(data.train)
    return Pretraining(config, data, model, objective, attack)


def model_spec(config: RunConfig, data: DataSet) -> ModelSpec:
    """The encoder that ``config`` names, for the images of ``data``."""
    import timm

    return ModelSpec(
        backbone=config.backbone,
        kwargs=config.backbone_kwargs,
        stem=config.stem,
        shape=data.shape,
        mean=data.mean,
        std=data.std,
        timm_version=timm.__version__,
    )
