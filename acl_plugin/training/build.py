"""Build model, objective and attack of a pretraining from its configuration."""

import logging
from collections.abc import Callable
from typing import Any, cast

from acl_plugin.attacks.catalogue import FREE, require_unique
from acl_plugin.attacks.free_attack import FreeAttack
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import RunConfig
from acl_plugin.data.images import DataSet
from acl_plugin.errors import UsageError
from acl_plugin.models import low_rank, norm_banks
from acl_plugin.models.copies import copied
from acl_plugin.models.encoder import Encoder
from acl_plugin.models.pretrained import PRETRAINED, of_channels, pretrained_spec, pretrained_weights
from acl_plugin.models.pretrained_teacher import Pretrained
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.models.recompute import recompute_blocks
from acl_plugin.models.spec import ModelSpec
from acl_plugin.objectives.base import Objective
from acl_plugin.registry import OBJECTIVES, create_objective
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.initialization import started_from
from acl_plugin.runs.layouts import NORMALIZATIONS
from acl_plugin.runs.models import load_encoder, weights_hash
from acl_plugin.runs.pseudo_labels import read_pseudo_labels
from acl_plugin.runtime import seeding
from acl_plugin.runtime.device import training_device
from acl_plugin.runtime.seeding import INITIALIZATION, mixed_seed
from acl_plugin.training.batch_size import check_sizes
from acl_plugin.training.knn import check_neighbours
from acl_plugin.training.module import Pretraining

logger = logging.getLogger(__name__)


def build(config: RunConfig, data: DataSet, encoder: EncoderProtocol | None = None) -> "Pretraining":
    """Build model, objective and attack of a run, after all checks that are possible before training.

    Args:
        config: configuration of the run.
        data: dataset of the run.
        encoder: your own encoder, in place of the configuration's backbone; a copy of it is trained.

    Returns:
        The module to train.

    Raises:
        UsageError: for invalid names, settings or sizes.
    """
    training_device(config.machine.accelerator)  # raises if the machine does not have it
    threat = ThreatModel(config.threat.norm, config.threat.eps)
    require_unique(config.objective.attack)
    kind = FreeAttack if config.objective.attack == FREE else InnerAttack
    attack = kind(threat, config.objective.attack, config.objective.attack_steps, config.objective.attack_kwargs)
    objective, teachers = _objective(config, data)
    attack.check(objective.attack_mode, data.shape)
    check_sizes(config, data)
    _check_branch(config, objective, encoder)
    if config.training.knn_every:
        data.require_labels("`knn_every`")
        check_neighbours(data.train)
    with seeding.isolated_rng(mixed_seed(config.machine.seed, INITIALIZATION)):
        for option in ("pretrained", "init"):
            if encoder is not None and getattr(config.encoder, option):
                message = f"`{option}` is of timm's networks; an encoder of your own has its weights already"
                raise UsageError(message, parameter=option, given=getattr(config.encoder, option))
        model: EncoderProtocol
        source: dict[str, str] = {}
        if encoder is None:
            model, source = _created(config, data, objective)
        else:
            model = _copied(encoder, objective, data)
        objective.setup(model)
        _check_average(config, objective, model)
        if config.encoder.lora_rank:
            _train_branch_only(model, config.encoder.lora_rank)
    if config.machine.grad_checkpointing:
        recompute_blocks(model.backbone)
    objective.check_images(data.pretraining)
    module = Pretraining(config, data, model, objective, attack)
    module.started_from, module.teachers = source, teachers
    return module


def _created(config: RunConfig, data: DataSet, objective: Objective) -> tuple[Encoder, dict[str, str]]:
    """Return the configured encoder, and the record of the weights that it starts from, if they are not random."""
    spec = model_spec(config, data, objective.normalized)
    if config.encoder.init is not None:
        return started_from(RunDir(config.encoder.init), spec, objective.norm_banks, objective.projector)
    if not config.encoder.pretrained:
        _check_start(config, objective)
        return Encoder(spec, objective.norm_banks, objective.projector), {}
    weights, source = pretrained_weights(config.encoder.backbone, spec, config.encoder.pretrained_file)
    model = Encoder(spec, objective.norm_banks, objective.projector)
    norm_banks.load_banks(model.backbone, dict.fromkeys(objective.norm_banks, weights))
    return model, source


def _check_start(config: RunConfig, objective: Objective) -> None:
    """Reject random weights for an objective that starts from trained ones."""
    if not objective.needs_start:
        return
    allowed = "`pretrained` (timm's weights), `pretrained_file` FILE or `init` RUN"
    message = f"objective {config.objective.objective!r} starts from a trained encoder, not from random weights"
    raise UsageError(f"{message}; give {allowed}", parameter="pretrained", given=False, allowed=allowed)


def _check_average(config: RunConfig, objective: Objective, model: EncoderProtocol) -> None:
    """Reject an average of weights that would not be kept, as the objective keeps an encoder of its own."""
    decay = config.training.ema_decay
    if decay and objective.downstream(model) is not model:
        message = f"`ema_decay` {decay}: objective {config.objective.objective!r} keeps its own momentum copy instead"
        raise UsageError(f"{message}; leave it out", parameter="ema_decay", given=decay, allowed=0)


def _check_branch(config: RunConfig, objective: Objective, encoder: EncoderProtocol | None) -> None:
    """Reject low-rank matrices beside random weights, or for an objective whose copies follow all weights."""
    rank, name, start = config.encoder.lora_rank, config.objective.objective, config.encoder
    if not rank:
        return
    if not objective.finetunes:
        others = [each for each in OBJECTIVES.names() if _finetunes(each)]
        message = f"`lora_rank` {rank} is not used with objective {name!r}, but with {', '.join(others)}"
        raise UsageError(f"{message}; leave one of them out", parameter="lora_rank", given=rank, allowed=0)
    trained = start.pretrained or start.init is not None or encoder is not None
    if not (trained or getattr(objective, "initialize", False)):
        allowed = "`pretrained`, `pretrained_file` FILE, `init` RUN, or a teacher that initializes the student"
        message = f"`lora_rank` {rank} is for an encoder that starts from trained weights; give {allowed}"
        raise UsageError(message, parameter="lora_rank", given=rank, allowed=0)


def _finetunes(name: str) -> bool:
    try:
        return getattr(OBJECTIVES.get(name), "finetunes", False) is True
    except UsageError:  # a broken one of another distribution
        return False


def _train_branch_only(model: EncoderProtocol, rank: int) -> None:
    """Add low-rank matrices to the backbone, and train these and the projector alone."""
    model.backbone.requires_grad_(False)
    low_rank.add_branch(model.backbone, rank)


def _pretrained_teacher(config: RunConfig, data: DataSet) -> Encoder:
    """Return an encoder without a projector, with the pretrained weights of the run's backbone."""
    spec = pretrained_spec(model_spec(config.replace(pretrained=False), data), config.encoder.input_size)
    teacher = Encoder(spec, projector="identity")
    weights, _ = pretrained_weights(config.encoder.backbone, spec, config.encoder.pretrained_file)
    teacher.backbone.load_state_dict(weights)
    return teacher.eval()


def _copied(encoder: EncoderProtocol, objective: Objective, data: DataSet) -> EncoderProtocol:
    """Return a copy of the user's encoder, after checking it against objective and images."""
    if tuple(encoder.norm_banks) != objective.norm_banks:
        given = f"norm banks {tuple(encoder.norm_banks)}"
        message = (
            f"`encoder` has {given}, the objective has {objective.norm_banks}; pass norm_banks={objective.norm_banks}"
        )
        raise UsageError(message, parameter="encoder", given=given, allowed=objective.norm_banks)
    for name, attribute in (("projector", "projector_name"), ("normalized", "normalized")):
        wanted = getattr(objective, name)
        given = getattr(encoder, attribute, wanted)
        if given != wanted:
            logger.warning(f"`encoder` has {name} {given!r}, the objective {wanted!r}: the encoder's is trained")
    shape = getattr(encoder, "shape", data.shape)
    if shape != data.shape:
        message = f"`encoder` takes images of shape {shape}, those of {data.name} are {data.shape}"
        raise UsageError(message, parameter="encoder", given=shape, allowed=data.shape)
    return copied(encoder)


def _objective(config: RunConfig, data: DataSet) -> tuple[Objective, dict[str, str]]:
    """Create the objective, after loading the objects whose paths are in the configuration.

    Returns:
        The objective, and the ``weights_hash`` of each run's encoder that it takes, by setting.
    """
    name, given = config.objective.objective, config.objective.objective_kwargs
    objective: Objective = create_objective(name, **given)  # rejects invalid settings before files are read

    digests: list[str] = []

    def encoder(value: str | dict[str, Any]) -> Encoder:
        if value == PRETRAINED:
            return _pretrained_teacher(config, data)
        named = Pretrained.of(value)
        if named is not None:
            return named.load(data.shape)
        found = load_encoder(cast(str, value))
        digests.append(weights_hash(found.backbone))
        return found

    def labels(value: str | dict[str, Any]) -> Any:
        return read_pseudo_labels(value) if isinstance(value, str) else value

    readers: dict[str, Callable[[Any], Any]] = {"encoder": encoder, "pseudo_labels": labels}
    loaded, teachers = given, {}
    for setting, kind in objective.from_files.items():
        loaded = _loaded(loaded, setting.split("."), readers[kind])
        if digests:
            teachers[setting] = digests.pop()
    return objective if loaded is given else create_objective(name, **loaded), teachers


def _loaded(settings: dict[str, Any], path: list[str], read: Callable[[Any], Any]) -> dict[str, Any]:
    """Return settings with the object of one file, whose name stands at ``path``; the same if there is none."""
    value = settings.get(path[0])
    if len(path) > 1:
        inner = _loaded(value, path[1:], read) if isinstance(value, dict) else value
        return settings if inner is value else {**settings, path[0]: inner}
    return {**settings, path[0]: read(value)} if isinstance(value, str | dict) else settings


def model_spec(config: RunConfig, data: DataSet, normalized: bool = False) -> ModelSpec:
    """Return the specification of the configured encoder, for the images of ``data``."""
    import timm

    mean, std = data.mean, data.std
    if config.encoder.input_normalization != "data":
        mean, std = of_channels(NORMALIZATIONS[config.encoder.input_normalization], data.shape[0])
    spec = ModelSpec(
        backbone=config.encoder.backbone,
        kwargs=config.encoder.backbone_kwargs,
        stem=config.encoder.stem,
        shape=data.shape,
        mean=mean,
        std=std,
        timm_version=timm.__version__,
        normalized=normalized,
        input_size=None if config.encoder.input_size is None else (config.encoder.input_size,) * 2,
    )
    return pretrained_spec(spec, config.encoder.input_size) if config.encoder.pretrained else spec
