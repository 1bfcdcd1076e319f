"""Allowed values of options."""

from typing import get_type_hints

from acl_plugin.config.probe_section import ProbeConfig
from acl_plugin.config.run_config import RunConfig
from acl_plugin.config.sections import DataConfig
from acl_plugin.config.unused import BY_HEAD, BY_SGD
from acl_plugin.errors import UsageError, unknown
from acl_plugin.registry import PROTOCOLS
from acl_plugin.validation import Range, check_value, require_eps

SMALLEST = 8
"""Side in pixels of the smallest images: on smaller ones, usual networks end in convolutions of single pixels."""
RANGES = {
    **dict.fromkeys(
        "attack_steps checkpoint_every devices num_nodes accumulate_grad_batches probe_epochs probe_batch_size "
        "limit_unlabeled eval_batch_size coreset_every aft_epochs aft_batch_size aft_outputs limit_test "
        "probe_attack_steps label_epochs label_batch_size autolora_rank".split(),
        Range(1),
    ),
    **dict.fromkeys(
        "epochs keep_every knn_every workers weak_padding probe_padding clip_grad_norm lr lp_lr aft_lr probe_lr "
        "weight_decay probe_weight_decay label_weight_decay lora_rank".split(),
        Range(0),
    ),
    **dict.fromkeys(
        "eps_ramp warmup coreset_warmup probe_holdout blur ema_decay".split(),
        Range(0, 1),
    ),
    **{
        "batch_size": Range(2),
        "limit_train": Range(2),
        **dict.fromkeys(("image_size", "resize", "input_size"), Range(SMALLEST, 8192)),  # a square of the largest files
        "seed": Range(0, 2**63 - 1),
        "aft_clusters": Range(2),
    },
    **dict.fromkeys("crop_scale layer_decay coreset_fraction label_fraction".split(), Range(0, 1, open=True)),
    "probe_attack_step": Range(0, 2, open=True),
}
"""Ranges of the numeric options."""


def check(config: RunConfig) -> None:
    """Check types, ranges and combinations of the values of a configuration.

    Raises:
        UsageError: naming the option, the given value and the allowed ones.
    """
    if not isinstance(config, RunConfig):
        allowed = "a configuration, such as acl_plugin.preset('digits')"
        message = f"`config` is {type(config).__name__}; allowed is {allowed}"
        raise UsageError(message, parameter="config", given=type(config).__name__, allowed=allowed)
    for section in vars(config).values():
        for name, kind in get_type_hints(type(section)).items():
            check_value(name, getattr(section, name), kind, RANGES.get(name))
    _require_size(config.data)
    if config.training.ema_decay == 1:
        message = "`ema_decay` 1: allowed is a number from 0 to below 1; with 1, the average never changes"
        raise UsageError(message, parameter="ema_decay", given=1, allowed="a number from 0 to below 1")
    _require_optimizer(config.training.optimizer)
    require_eps(config.threat.norm, config.threat.eps)
    probe = config.probe
    if probe.probe_protocol not in PROTOCOLS:
        raise unknown("`probe_protocol`", probe.probe_protocol, PROTOCOLS.names(), parameter="probe_protocol")
    if config.machine.compile and config.machine.grad_checkpointing:
        message = "`grad_checkpointing` is not used with `compile`; leave one of them out"
        raise UsageError(message, parameter="grad_checkpointing", given=True, allowed=False)
    if config.objective.attack == "free":
        _require_alone(config)
    encoder = config.encoder
    if encoder.pretrained and encoder.init is not None:
        message = "`init`: a run starts from another run or from `pretrained` weights, not from both"
        raise UsageError(message, parameter="init", given=str(encoder.init), allowed=None)
    if encoder.pretrained and encoder.stem != "native":
        message = f"`stem` {encoder.stem}: pretrained weights are of the stem native; leave the option out"
        raise UsageError(message, parameter="stem", given=encoder.stem, allowed=("native",))
    _require_schedule(probe)


def _require_alone(config: RunConfig) -> None:
    """Refuse what needs an attack with passes of its own, or one update for several batches."""
    for section, name, usual in ((config.training, "accumulate_grad_batches", 1), (config.coreset, "coreset", "none")):
        given = getattr(section, name)
        if given != usual:
            message = f"`{name}` {given} is not used with `attack` free; leave one of them out"
            raise UsageError(message, parameter=name, given=given, allowed=usual)


def _require_schedule(probe: ProbeConfig) -> None:
    """Refuse milestones that do not rise, and settings of a probe that contradict each other."""
    for name in ("probe_milestones", "label_milestones"):
        falls = getattr(probe, name) or []
        if falls != sorted(falls) or any(share not in Range(0, 1, open=True) for share in falls):
            allowed = f"a rising list, each {Range(0, 1, open=True)}"
            raise UsageError(f"`{name}` {falls}: allowed is {allowed}", parameter=name, given=falls, allowed=allowed)
    small = {"probe_batch_size": probe.probe_protocol in BY_SGD - BY_HEAD, "aft_batch_size": probe.lpaft != "none"}
    small["label_batch_size"] = probe.probe_protocol == "semi"
    for name in (name for name, trains_norms in small.items() if trains_norms and getattr(probe, name) == 1):
        message = f"`{name}` 1: allowed is a number from 2, as norm layers are trained"
        raise UsageError(message, parameter=name, given=1, allowed="a number from 2")
    if probe.probe_protocol == "slf_exact" and probe.probe_weight_decay == 0:
        message = "`probe_weight_decay` 0: allowed is a number above 0 with `probe_protocol` slf_exact"
        raise UsageError(message, parameter="probe_weight_decay", given=0, allowed="a number above 0")
    if probe.holdout_indices is not None and probe.probe_holdout:
        message = "`holdout_indices` is not used with `probe_holdout`; leave one of them out"
        raise UsageError(message, parameter="holdout_indices", given=str(probe.holdout_indices), allowed=None)
    clusters, outputs = probe.aft_clusters, probe.aft_outputs
    if clusters is not None and outputs is not None and outputs < clusters:
        allowed = f"{clusters} or more, `aft_clusters`"
        message = f"`aft_outputs` {outputs}: allowed is {allowed}"
        raise UsageError(message, parameter="aft_outputs", given=outputs, allowed=allowed)


def _require_size(data: DataConfig) -> None:
    """Refuse a size that is no pair, and a shorter side that is smaller than the crop."""
    size = data.image_size
    if isinstance(size, list) and (len(size) != 2 or any(side not in RANGES["image_size"] for side in size)):
        allowed = f"a side or [height, width], each {RANGES['image_size']}"
        message = f"`image_size` {size}: allowed is {allowed}"
        raise UsageError(message, parameter="image_size", given=size, allowed=allowed)
    largest = max(size) if isinstance(size, list) else size or 0
    if data.resize is not None and data.resize < largest:
        message = f"`resize` {data.resize}, before a crop to `image_size` {size}: allowed is {largest} or more"
        raise UsageError(message, parameter="resize", given=data.resize, allowed=f"{largest} or more")


USUAL = ("adamw", "sgd", "lars", "lamb", "lion")
"""Optimizers that need no look into timm, whose import takes seconds."""
SECOND_ORDER = "adahessian"
"""Optimizer of timm that needs second derivatives, which a step does not compute."""


def _require_optimizer(name: str) -> None:
    """Refuse an optimizer that timm does not have, or that needs more than a gradient.

    Raises:
        UsageError: with the nearest of the usual names.
    """
    if name in USUAL:
        return
    import torch
    from timm.optim import create_optimizer_v2

    try:  # timm 1.0.9 has no list of them
        create_optimizer_v2([torch.nn.Parameter(torch.zeros(1))], opt=name, lr=0.1, weight_decay=0.0, momentum=0.9)
    except Exception as error:  # of any type, for an unknown name
        raise unknown("`optimizer`", name, USUAL, parameter="optimizer") from error
    if SECOND_ORDER in name:
        message = (
            f"`optimizer` {name} needs second derivatives, which a step does not compute; allowed are others of timm"
        )
        raise UsageError(message, parameter="optimizer", given=name, allowed=USUAL)
