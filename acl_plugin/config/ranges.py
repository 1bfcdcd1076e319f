"""Allowed values of options."""

from typing import get_type_hints

from acl_plugin.config.sections import RunConfig
from acl_plugin.errors import UsageError, unknown
from acl_plugin.registry import PROTOCOLS
from acl_plugin.validation import Range, check_value, require_eps

RANGES = {
    **dict.fromkeys(
        "attack_steps checkpoint_every devices num_nodes accumulate_grad_batches probe_epochs probe_batch_size "
        "limit_unlabeled eval_batch_size coreset_every aft_epochs limit_test".split(),
        Range(1),
    ),
    **dict.fromkeys("epochs keep_every knn_every lr aft_lr probe_lr weight_decay probe_weight_decay".split(), Range(0)),
    **dict.fromkeys(
        "eps_ramp warmup coreset_warmup coreset_fraction probe_holdout label_fraction blur".split(), Range(0, 1)
    ),
    **{
        "batch_size": Range(2),
        "limit_train": Range(2),
        "image_size": Range(8),
        "input_size": Range(8),
        "seed": Range(0, 2**63 - 1),
    },
    "crop_scale": Range(0, 1, open=True),
}
"""Ranges of the numeric options."""


def check(config: RunConfig) -> None:
    """Check types, ranges and combinations of the values of a configuration.

    Raises:
        UsageError: naming the option, the given value and the allowed ones.
    """
    for section in vars(config).values():
        for name, kind in get_type_hints(type(section)).items():
            check_value(name, getattr(section, name), kind, RANGES.get(name))
    require_eps(config.threat.norm, config.threat.eps)
    probe = config.probe
    if probe.probe_protocol not in PROTOCOLS:
        raise unknown("`probe_protocol`", probe.probe_protocol, PROTOCOLS.names(), parameter="probe_protocol")
    encoder = config.encoder
    if encoder.pretrained and encoder.init is not None:
        message = "`init`: a run starts from another run or from `pretrained` weights, not from both"
        raise UsageError(message, parameter="init", given=str(encoder.init), allowed=None)
    if encoder.pretrained and encoder.stem != "native":
        message = f"`stem` {encoder.stem}: pretrained weights are of the stem native; leave the option out"
        raise UsageError(message, parameter="stem", given=encoder.stem, allowed=("native",))
    falls = probe.probe_milestones
    if falls != sorted(falls) or any(share not in Range(0, 1, open=True) for share in falls):
        allowed = f"a rising list, each {Range(0, 1, open=True)}"
        message = f"`probe_milestones` {falls}: allowed is {allowed}"
        raise UsageError(message, parameter="probe_milestones", given=falls, allowed=allowed)
    if probe.probe_protocol == "slf_exact" and probe.probe_weight_decay == 0:
        message = "`probe_weight_decay` 0: allowed is a number above 0 with `probe_protocol` slf_exact"
        raise UsageError(message, parameter="probe_weight_decay", given=0, allowed="a number above 0")
