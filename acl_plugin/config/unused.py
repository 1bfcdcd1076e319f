"""Checks for options that a command would silently ignore.

``RUN`` and the similar tables list the options that are used only with certain values of another option. Tests compare
these tables with the options that the code reads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acl_plugin.errors import UsageError
from acl_plugin.registry import create_objective

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Use:
    """Condition under which an option is used.

    Attributes:
        choice: option that decides.
        when: values of ``choice`` with which the option is used, or a function of all options.
        users: description of ``when``, if it is a function.
    """

    choice: str
    when: frozenset[str] | Callable[[Options], bool]
    users: str = ""

    def holds(self, options: Options) -> bool:
        """Return whether the option is used together with these options."""
        return self.when(options) if callable(self.when) else options[self.choice] in self.when

    def __str__(self) -> str:
        return self.users if callable(self.when) else ", ".join(sorted(self.when))


Uses = dict[str, tuple[Use, ...]]
"""Conditions by option; the option is used if all of them hold."""


def refuse(runs: Sequence[Options], usual: Options, uses: Uses) -> None:
    """Check that every option with a value other than its default is used.

    Args:
        runs: all options of each run of the command; at least one run must use the option.
        usual: defaults of the options to check.
        uses: conditions of the command's options.

    Raises:
        UsageError: naming the choice that ignores the option, and those that use it.
    """
    for name, conditions in uses.items():
        if name not in usual or all(run[name] == usual[name] for run in runs):
            continue
        failed = [next((use for use in conditions if not use.holds(run)), None) for run in runs]
        use = failed[0]
        if use is not None and None not in failed:
            given, choice = runs[0][name], runs[0][use.choice]
            raise UsageError(
                f"`{name}` {given} is not used with `{use.choice}` {choice}, but with {use}; leave one of them out",
                parameter=name, given=given, allowed=usual[name],
            )  # fmt: skip


def _example(options: Options) -> Any:
    """Create the objective to read its attributes; None if that fails, which raises an error elsewhere."""
    from acl_plugin.runtime import seeding

    try:
        with seeding.isolated_rng(0):
            return create_objective(options["objective"], **options["objective_kwargs"])
    except UsageError:
        return None


def _has_attack(options: Options) -> bool:
    objective = _example(options)
    return objective is None or objective.attack_mode is not None


def _has_views(options: Options) -> bool:
    objective = _example(options)
    return objective is None or bool(objective.needs) or options["lpaft"] != "none"


def _has_padding(options: Options) -> bool:
    """Return whether weak views are drawn, or strong ones that begin with one."""
    objective = _example(options)
    drawn = () if objective is None else objective.needs
    of_strong = options["augment"] == "autoaugment" and bool({"a", "b"} & set(drawn))
    return objective is None or "weak" in drawn or of_strong or options["lpaft"] != "none"


def _has_unlabeled(options: Options) -> bool:
    without = WITHOUT_FILES | FILES - {"stl10_unlabeled"}
    return options["unlabeled"] is not None or not (options["data"] in without or _of_hub(options))


def _has_fraction(options: Options) -> bool:
    return options["label_indices"] is None or options["probe_protocol"] != "semi"


def _of_hub(options: Options) -> bool:
    return bool(options["data"].startswith("hf:"))


def _of_files(options: Options) -> bool:
    """Return whether the images of the dataset are encoded files, and no arrays."""
    return options["data"] not in DOWNLOADED | WITHOUT_FILES


WITHOUT_FILES = frozenset({"digits", "digits_0_4", "digits_5_9", "digits_val"})
WITHOUT_STEPS = frozenset({"FGSM", "FFGSM"})
"""torchattacks classes with a single step."""
DOWNLOADED = frozenset({"cifar10", "cifar10_val", "cifar100", "stl10", "stl10_unlabeled"})
FILES = DOWNLOADED | {"image_folder", "imagenet", "tiny_imagenet"}
SOLVED = frozenset({"slf_exact"})
BY_COSINE = frozenset({"gsa_slf", "gsa_alf"})
BY_STEPS = frozenset({"slf", "alf", "alf_trades", "aff_trades", "aff_pgd", "semi"})
AUTOLORA = frozenset({"aff_autolora"})
BY_SGD = BY_STEPS | BY_COSINE | AUTOLORA
BY_HEAD = frozenset({"slf", "alf", "alf_trades"}) | BY_COSINE
BY_TRADES = frozenset({"alf_trades", "aff_trades"})
BY_ATTACK = (BY_STEPS - {"slf"}) | AUTOLORA
LPAFT = Use("lpaft", frozenset({"dynacl", "air"}))
SEMI = Use("probe_protocol", frozenset({"semi"}))
FROM_FILES = Use("data", lambda o: o["data"] not in WITHOUT_FILES, ", ".join([*sorted(FILES), "hf:NAME"]))
TRAINED = Use("probe_protocol", lambda o: o["probe_protocol"] not in SOLVED, ", ".join(sorted(BY_SGD)))
FALLING = Use(
    "probe_protocol", lambda o: o["probe_protocol"] not in SOLVED | BY_COSINE | AUTOLORA, ", ".join(sorted(BY_STEPS))
)
DECODED = Use(
    "data",
    lambda o: _of_files(o) or o["unlabeled"] is not None,
    "image_folder, imagenet, tiny_imagenet, hf:NAME, or with --unlabeled DIR",
)
SIMCLR = Use("augment", frozenset({"simclr"}))
ATTACKED = Use("objective", _has_attack, "objectives that have an inner attack")

RUN: Uses = {
    "data_dir": (FROM_FILES,),
    "download": (Use("data", DOWNLOADED),),
    **dict.fromkeys(("resize", "data_memory", "workers", "skip_unreadable"), (DECODED,)),
    **dict.fromkeys(("image_column", "label_column"), (Use("data", _of_hub, "hf:NAME"),)),
    "channels": (Use("data", _of_files, "datasets of files"),),
    "input_normalization": (Use("pretrained", lambda o: not o["pretrained"] and o["init"] is None, "random weights"),),
    "pretrained_file": (Use("pretrained", lambda o: o["pretrained"], "--pretrained"),),
    "limit_unlabeled": (Use("data", _has_unlabeled, "stl10_unlabeled, or with --unlabeled DIR"),),
    "attack_steps": (ATTACKED, Use("attack", lambda o: o["attack"] not in WITHOUT_STEPS, "attacks of several steps")),
    "augment": (Use("objective", _has_views, "objectives that draw views"),),
    **dict.fromkeys(("crop_scale", "crop_interpolation", "color_first", "blur"), (SIMCLR,)),
    "weak_padding": (Use("augment", _has_padding, "autoaugment, objectives that draw weak views, --lpaft"),),
    "probe_padding": (TRAINED, Use("probe_augment", frozenset({"shift", "weak"}))),
    "schedule_kwargs": (Use("schedule", frozenset({"step", "multistep", "poly", "tanh"})),),
    "label_fraction": (SEMI, Use("label_indices", _has_fraction, "null")),
    "aff_banks": (Use("probe_protocol", AUTOLORA | {"aff_trades"}),),
    "autolora_rank": (Use("probe_protocol", AUTOLORA),),
    "trades_start": (Use("probe_protocol", BY_TRADES),),
    "probe_statistics": (Use("probe_protocol", BY_HEAD),),
}
for names, use in {
    "attack attack_kwargs eps_ramp": ATTACKED,
    "coreset_fraction coreset_warmup coreset_every coreset_fidelity": Use("coreset", frozenset({"rcs"})),
    "aft_epochs aft_batch_size lp_lr aft_lr aft_clusters aft_outputs aft_fidelity": LPAFT,
    "label_indices label_epochs label_batch_size label_milestones label_weight_decay": SEMI,
    "probe_attack_steps probe_attack_step": Use("probe_protocol", BY_ATTACK),
    "probe_holdout holdout_indices probe_epochs probe_batch_size probe_lr probe_nesterov probe_head": TRAINED,
    "probe_augment": TRAINED,
    "probe_milestones": FALLING,
}.items():
    RUN |= dict.fromkeys(names.split(), (use,))
"""Conditions for ``run``, ``pretrain``, ``import`` and ``transfer``, whose folders store options of a later probe."""
PROBE = RUN | {"precision": (TRAINED,)}
ATTACKING = Use("suite", lambda o: o["suite"] != "corruptions", "suites of attacks")
EVALUATE: Uses = {
    "data_dir": (FROM_FILES,),
    **dict.fromkeys(("norm", "eps", "eval_batch_size"), (ATTACKING,)),
    **dict.fromkeys(("devices", "per_class"), (Use("suite", frozenset({"autoattack"})),)),
    "attacks": (Use("suite", frozenset({"standard"})),),
    "corruptions_dir": (Use("suite", frozenset({"corruptions"})),),
    "seed": (Use("corruptions_dir", lambda o: o["corruptions_dir"] is None, "corruptions that are made here"),),
}
PSEUDO_LABELS: Uses = {"data_dir": (FROM_FILES,)}
