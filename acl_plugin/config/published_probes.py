"""Settings of probes as RobustSSL's and the authors' code have them, by objective, dataset and protocol."""

from collections.abc import Mapping
from typing import Any

from acl_plugin.config import unused
from acl_plugin.config.published import ANY, Options, Published, Source, find, labeled, matching
from acl_plugin.config.run_config import RunConfig
from acl_plugin.errors import UsageError

ACL, DYNACL, AIR, DYNACL_AIR = "acl_a2a acl_a2s acl_ds", "dynacl", "acl_air", "dynacl_air"
ONE_BANK = "advcl a_infonce deacl"
"""Methods whose encoder has one bank for the probe in RobustSSL."""
HEAD, HEADS = "slf alf", "slf alf alf_trades"
TEN, FIFTEEN = [0.4, 0.8], [0.6, 0.8]
"""Falls of the learning rate after 10 and 20, or 15 and 20, of 25 epochs."""
COMMON: Options = {
    "probe_epochs": 25, "probe_milestones": FIFTEEN, "probe_batch_size": 512, "probe_lr": 0.1, "probe_nesterov": False,
    "probe_weight_decay": 2e-4, "probe_head": "zeros", "probe_statistics": "frozen", "probe_attack_steps": 10,
    "probe_attack_step": 0.25, "trades_start": "noise", "aff_banks": "two", "probe_augment": "weak", "probe_padding": 4,
    "probe_holdout": 0.0, "precision": "32-true",
}  # fmt: skip
AFT: Options = {"aft_epochs": 25, "aft_batch_size": 512, "aft_lr": 0.1, "lp_lr": 0.01, "aft_fidelity": "released"}
"""LP-AFT of DynACL and of AIR, which differ in attack and clusters."""
WIDE: Options = {**AFT, "aft_outputs": 100}
"""DynACL's LP-AFT on CIFAR-100, whose head has 100 outputs for 10 pseudo-labels."""
C10, C100, STL_96, STL_32 = "cifar10", "cifar100", "stl10 at 96", "stl10 at 32"
SETS = (C10, C100, STL_96, STL_32)
Cells = Mapping[str, Options]


def _rows(
    methods: str, protocols: str, cells: Cells, origin: str, source: Source = "robustssl", **about: Any
) -> tuple[Published, ...]:
    """Return a row for each method, protocol and dataset; a name such as "stl10 at 96" has the image size."""
    when = about.pop("when", {})
    found = []
    for cell, options in cells.items():
        data, _, size = cell.partition(" at ")
        chosen = {**when, **({"image_size": int(size)} if size else {})}
        for method in methods.split():
            for protocol in protocols.split():
                own = {"protocol": protocol, "source": source, **about}
                used = _used({**COMMON, **options}, {**chosen, "probe_protocol": protocol})
                found.append(Published(method, data, used, origin, chosen, **own))
    return tuple(found)


def _used(options: Options, chosen: Options) -> dict[str, Any]:
    """Return the options that a probe with these choices uses."""
    complete = {**RunConfig().options(), **options, **chosen}
    return {name: v for name, v in options.items() if all(use.holds(complete) for use in unused.RUN.get(name, ()))}


def _of(rate: float, batch: int = 512, falls: Any = FIFTEEN, **others: Any) -> dict[str, Any]:
    return {"probe_lr": rate, "probe_batch_size": batch, "probe_milestones": falls, **others}


def _heads(*rates: float, falls: Any = TEN, batch_32: int = 128) -> dict[str, Options]:
    """Return the cells of a linear head for the rates on CIFAR-10, CIFAR-100 and STL-10 at 96 and 32 pixels."""
    sizes = (512, 512, 512, batch_32)
    return {cell: _of(rate, size, falls) for cell, rate, size in zip(SETS, rates, sizes, strict=True)}


def _with(cells: Cells, more: Options, wide: Options | None = None) -> dict[str, Options]:
    """Return the cells with further options, on CIFAR-100 with those of ``wide`` if given."""
    return {cell: {**own, **((wide or more) if cell == C100 else more)} for cell, own in cells.items()}


AFF = dict.fromkeys(SETS, _of(0.1, 128))
AFF_100 = dict.fromkeys(SETS, _of(0.1, 128, TEN[:1] + FIFTEEN[:1], probe_epochs=100))
AFF_DYNACL = AFF | {STL_96: _of(0.1, 128, TEN)}
ONE: dict[str, Any] = {"aff_banks": "one"}
AFTER, AFTER_AIR = {"lpaft": "dynacl"}, {"lpaft": "air"}
LIKE_ACL = _heads(0.01, 0.05, 0.1, 0.01)
OF_AIR = _heads(0.005, 0.1, 0.01, 0.01)
OF_DYNACL_AIR = _heads(0.01, 0.1, 0.1, 0.01)
OF_AIR_PLUS = _heads(0.01, 0.09, 0.1, 0.1)
SHORT = _of(0.01, 512, [], probe_epochs=5)
"""5 epochs, before the first fall."""
RSSL = "RobustSSL 19dc714, Finetuning_Methods/Vanilla_Finetuning/utils.py"
TRANSFERS = "RobustSSL 19dc714, run_vanilla_tune.sh:31-37"
AUTOLORA: Options = _of(0.1, 128, probe_epochs=50, aff_banks="one", autolora_rank=8)
AUTOLORA_CODE = "RobustSSL 19dc714, Finetuning_Methods/AutoLoRa/AutoLoRa.py:98-103, utils.py:1091-1190, run_autolora.sh"
FROM_CIFAR10 = {"pretrained_on": "cifar10", "image_size": 32}
ROBUSTSSL: tuple[Published, ...] = (
    *_rows(f"{ACL} {DYNACL}", HEAD, LIKE_ACL, f"{RSSL}:805-842"),
    *_rows(DYNACL, HEAD, _with(LIKE_ACL, AFT, WIDE), f"{RSSL}:828-842", when=AFTER),
    *_rows(ACL, "aff_trades", AFF_100, f"{RSSL}:820-824"),
    *_rows(DYNACL, "aff_trades", AFF_DYNACL, f"{RSSL}:843-849"),
    *_rows(DYNACL, "aff_trades", _with(AFF_DYNACL, AFT, WIDE), f"{RSSL}:843-849", when=AFTER),
    *_rows(ONE_BANK, HEAD, dict.fromkeys(SETS, _of(0.01)), f"{RSSL}:854-880"),
    *_rows(ONE_BANK, "aff_trades", _with(AFF, ONE), f"{RSSL}:859-884"),
    *_rows(AIR, "slf", OF_AIR, f"{RSSL}:887-901"),
    *_rows(AIR, "alf", OF_AIR | {C10: _of(0.01, 512, TEN)}, f"{RSSL}:902-915"),
    *_rows(AIR, "aff_trades", AFF_100, f"{RSSL}:916-920"),
    *_rows(DYNACL_AIR, "slf", OF_DYNACL_AIR | {C10: SHORT}, f"{RSSL}:924-939"),
    *_rows(DYNACL_AIR, "alf", OF_DYNACL_AIR | {STL_96: _of(0.1, 128, TEN)}, f"{RSSL}:940-953",
           note="there: 5 epochs on CIFAR-10 where one command runs all protocols, as the number of SLF stays"),
    *_rows(DYNACL_AIR, "aff_trades", AFF, f"{RSSL}:954-957"),
    *_rows(DYNACL_AIR, "slf", _with(OF_AIR_PLUS, AFT), f"{RSSL}:961-972", when=AFTER_AIR),
    *_rows(
        DYNACL_AIR, "alf",
        _with(OF_AIR_PLUS | {C10: {**SHORT, "probe_epochs": 4}, C100: _of(0.1, 512, TEN), STL_96: _of(0.1, 128, TEN)},
              AFT),
        f"{RSSL}:973-984", when=AFTER_AIR,
    ),
    *_rows(DYNACL_AIR, "aff_trades", _with(AFF, AFT), f"{RSSL}:985-994", when=AFTER_AIR),
    *_rows(DYNACL, f"{HEAD} aff_trades", AFF, f"{RSSL}:997-1000", when={"coreset": "rcs"},
           note="the row for all other names, to which DynACL-RCS falls there"),
    *_rows(f"{ACL} {AIR}", "aff_trades", {"stl10": {**AFF_100[C10], **ONE}}, TRANSFERS, when=FROM_CIFAR10),
    *(row for after in ({}, AFTER, AFTER_AIR) for row in _rows(
        f"{DYNACL} {DYNACL_AIR}", "aff_trades", {"stl10": {**AFF[C10], **ONE, **(AFT if after else {})}}, TRANSFERS,
        when={**FROM_CIFAR10, **after})),
    *_rows(f"{DYNACL} {ONE_BANK} {DYNACL_AIR}", "aff_autolora", {STL_32: AUTOLORA}, AUTOLORA_CODE,
           note="there: the epoch with the highest accuracy on test images; the rate by PGD-20 on training images"),
    *_rows(ANY, f"{HEAD} aff_trades", AFF, f"{RSSL}:997-1000"),
)  # fmt: skip
"""RobustSSL's evaluation of all methods; the last epoch is kept and no image is held out."""

ACL_CODE = "ACL 399eabd, train_trades.py:23-46, 114-126, 300-303"
SPLIT: dict[str, Any] = {**ONE, "probe_holdout": 0.1}
OWN_SPLIT = "there: a fixed split (--holdout-indices split/valid_idx_std.npy)"
AS_STEPPED = [14 / 25, 19 / 25]
"""Falls at the start of epochs 15 and 20."""
STAGES: dict[str, Any] = {
    "label_epochs": 100, "label_batch_size": 128, "label_milestones": [0.39, 0.59], "label_weight_decay": 2e-4,
    "probe_epochs": 15, "probe_milestones": [4 / 15, 9 / 15], "probe_weight_decay": 5e-4, "probe_holdout": 0.1,
}  # fmt: skip
SEMI_NOTE = "there: a fixed split (--label-indices, --holdout-indices), and 2 or 25 labeled images in each batch"
ROCL_HEAD = _of(0.1, 1024, [31 / 150, 51 / 150, 101 / 150], probe_epochs=150, probe_weight_decay=5e-4,
                probe_head="random", probe_augment="none", probe_padding=None)  # fmt: skip
ROCL_FALLS = _of(0.1, 1024, [16 / 25, 21 / 25], probe_attack_steps=20, probe_head="random", probe_augment="none",
                 probe_padding=None)  # fmt: skip
RANDOM: dict[str, Any] = {"probe_head": "random"}
ASYM = {C10: _of(0.01, probe_attack_steps=20, **RANDOM), C100: _of(0.1, probe_attack_steps=20, **RANDOM)}
PLAIN = _of(0.1, probe_attack_steps=20, **RANDOM)
ASYM_ADVCL = "A-InfoNCE b28763e, Asym-AdvCL"
ON_TEST = "there: the epoch is chosen on the test images"
TEST_LF = dict.fromkeys((C10, C100, STL_96), _of(0.01, 512, TEN))
LPAFT_SLF = {cell: _of(rate, 512, TEN, probe_nesterov=True, probe_attack_steps=20, **RANDOM)
             for cell, rate in ((C10, 0.01), (C100, 0.05), (STL_96, 0.1))}  # fmt: skip
AT_IMAGE = dict.fromkeys((C10, C100), _of(0.1, 128, trades_start="image"))
GSA: Options = {"probe_epochs": 100, "probe_lr": 0.1, "probe_weight_decay": 1e-4, "probe_batch_size": 512,
                "probe_head": "random", "probe_augment": "weak", "probe_padding": 4}  # fmt: skip
DEACL_OLD = _of(0.01, **RANDOM)
OF_CODE: tuple[Published, ...] = (
    *_rows(ACL, "aff_trades", {C10: _of(0.1, 128, [0.39, 0.59], probe_epochs=100, **SPLIT),
                               C100: _of(0.1, 128, AS_STEPPED, **SPLIT)}, ACL_CODE, "released", note=OWN_SPLIT),
    *_rows(ACL, "aff_trades", {C10: _of(0.1, 128, AS_STEPPED, **SPLIT)},
           "VITA-Group/Adversarial-Contrastive-Learning issue 19, the settings of the paper", "paper", note=OWN_SPLIT),
    *(row for share, batch in ((0.01, 200), (0.1, 250)) for row in _rows(
        f"{ACL} {DYNACL}", "semi", {C10: _of(0.1, batch, **{**STAGES, "label_fraction": share})},
        "ACL 399eabd, readme.md:54-63, train_trades_cifar10_semisupervised.py:274-342", "released",
        when={"label_fraction": share}, note=SEMI_NOTE)),
    *_rows("rocl", HEAD, dict.fromkeys((C10, C100), ROCL_HEAD | {"probe_attack_step": 0.007 / 0.0314}),
           "RoCL b6d5185, README.md:33, src/linear_eval.py:111-166, 256-308", "released"),
    *_rows("advcl", "slf", {C10: _of(0.01, **RANDOM)}, "AdvCL 24cb7a6, finetuning_advCL_SLF.py:26-31, 139-185",
           "released", note=ON_TEST),
    *_rows("advcl", HEAD, {C10: PLAIN}, f"{ASYM_ADVCL}/shell/cifar10/advcl-cifar10.sh:7-8", "released",
           when={"epochs": 400}, note=ON_TEST),
    *_rows("advcl", HEAD, {C100: PLAIN}, f"{ASYM_ADVCL}/shell/cifar100/advcl-cifar100.sh:7-8", "released",
           note=ON_TEST),
    *_rows("a_infonce", HEAD, ASYM, f"{ASYM_ADVCL}/shell/DATA/advcl-VARIANT-DATA.sh:5-6", "released",
           settings={"base": "advcl"}, note=ON_TEST),
    *_rows("a_infonce", "aff_trades", dict.fromkeys((C10, C100), _of(0.1, **ONE, **RANDOM)),
           f"{ASYM_ADVCL}/finetuning_advCL_SLF.py:236-257", "released", settings={"base": "advcl"},
           note=ON_TEST),
    *_rows("a_infonce", "slf", dict.fromkeys((C10, C100), ROCL_HEAD), "A-InfoNCE b28763e, Asym-RoCL/shell", "released",
           settings={"base": "rocl"}),
    *_rows("a_infonce", "alf aff_trades", dict.fromkeys((C10, C100), ROCL_FALLS | ONE),
           "A-InfoNCE b28763e, Asym-RoCL/rocl_finetune.py:49-95, 287-342, 427-437", "released",
           settings={"base": "rocl"}),
    *_rows(DYNACL, HEAD, TEST_LF, "DynACL 7d143db, test_LF.py:29-94", "released",
           note="the leaderboard has other rates on CIFAR-100 and STL-10"),
    *_rows(DYNACL, "aff_trades", AT_IMAGE, "DynACL 7d143db, test_AFF.py:33-76, 240-312", "released"),
    *_rows(DYNACL, HEAD, _with(LPAFT_SLF, AFT, WIDE), "DynACL 7d143db, LPAFT.py:34-47, 138-171, 257-405", "released",
           when=AFTER),
    *_rows(DYNACL, "aff_trades", _with(AT_IMAGE, AFT, WIDE), "DynACL 7d143db, LPAFT_AFF.py:193-362, 502-523",
           "released", when=AFTER),
    *(Published(row.objective, row.data, {**row.options, "probe_lr": 0.1} if row.data == C100 else row.options,
                "AIR 15cf0a7, LP-AFF.py:39-52, 161-203, 243-322, finetuning_utils.py:803-1002", row.when,
                protocol=row.protocol) for row in ROBUSTSSL
      if row.objective == DYNACL_AIR and row.when.get("lpaft") == "air" and row.data != "stl10"),
    *(Published(row.objective, row.data, row.options, "AIR 15cf0a7, finetuning_utils.py:803-1002", row.when,
                protocol=row.protocol) for row in ROBUSTSSL
      if row.objective in (AIR, DYNACL_AIR) and "lpaft" not in row.when),
    *(Published(row.objective, row.data, row.options, "RCS 6fc9aef, finetuning_utils.py",
                {**row.when, "coreset": "rcs"}, protocol=row.protocol) for row in ROBUSTSSL
      if row.objective in ("acl_ds", DYNACL) and not {"lpaft", "coreset"} & set(row.when)),
    *_rows("deacl", "slf", {C10: _of(0.1, probe_statistics="updated", **RANDOM)},
           "DeACL 3fb81e3, README.md:54-62, adv_finetune.py:100-112, 215-232", "released"),
    *_rows("deacl", "slf", {C10: DEACL_OLD}, "DeACL dc0807e (March 2023), adv_slf.py:100-108, 219", "paper",
           note="the code of March 2023, beside the paper: 45.31 of AutoAttack there, 45.57 by this code"),
    *_rows("deacl", "alf_trades", {C10: DEACL_OLD | {"probe_statistics": "updated"}},
           "DeACL 3fb81e3, README.md:62, adv_finetune.py:250-267", "released"),
    *_rows("deacl", "aff_trades", {C10: DEACL_OLD | ONE}, "DeACL 3fb81e3, README.md:56, adv_finetune.py:234-248",
           "released", note="there: benign images pass twice in each step, in training mode"),
    *_rows("profeat", "slf", dict.fromkeys((C10, C100), _of(5.0, probe_holdout=0.02, **RANDOM)),
           "ProFeAT 05c1cea, train.sh:10, pretraining.py:276-300, finetune.py:68-118", "released",
           note="there: the first 100 or 10 images of each class are held out"),
    *_rows("gsa_rsl clae rocl advcl", "gsa_slf gsa_alf", dict.fromkeys((C10, C100, "stl10", "tiny_imagenet"), GSA),
           "GSA-RSL e574b92, args/linear.py:17-26, linear_correct_bn.py:33-42, 252-296", "released", note=ON_TEST),
)  # fmt: skip
"""The authors' own evaluations, and that of a paper where its code differs."""
PROBES: tuple[Published, ...] = (*ROBUSTSSL, *OF_CODE)
PREFERRED: tuple[Source, ...] = ("robustssl", "released", "paper")


def published_probe(given: Options, source: Source | None = None, *, pretrained_on: str | None = None) -> Published:
    """Return the published row for a probe.

    Args:
        given: options of the run by name; its objective may be ``imported``.
        source: where the settings come from; None for RobustSSL's, or the authors' where it has none.
        pretrained_on: dataset of the pretraining, if the run is a transfer.

    Raises:
        UsageError: when there is none, with the nearest; or for an imported run whose format is that of several
            methods with different settings.
    """
    methods = [given["objective"]]
    if methods == ["imported"]:
        methods = given["objective_kwargs"].get("methods", [])
    complete = _completed(given, pretrained_on)
    sources = PREFERRED if source is None else [source]
    rows = [find(PROBES, {**complete, "objective": name}, given["probe_protocol"], sources) for name in methods]
    if not rows or any(row.options != rows[0].options for row in rows):
        allowed = ", ".join(methods) or "one of a newer import"
        raise UsageError(
            f"`published`: the method of this imported run is not known, and they differ; import it with `method`: "
            f"{allowed}",
            parameter="published", given=True, allowed=tuple(methods),
        )  # fmt: skip
    return rows[0]


def probe_is(given: Options, *, pretrained_on: str | None = None) -> list[str]:
    """Return the published rows that a probe with these options has the settings of, one phrase each."""
    return matching(PROBES, _completed(given, pretrained_on), given["probe_protocol"])


def _completed(given: Options, pretrained_on: str | None) -> dict[str, Any]:
    """Return the options with what selects a row beside them."""
    size = given["image_size"]
    if isinstance(size, list) and size[0] == size[1]:
        size = size[0]
    if labeled(given["data"]) == "stl10":
        size = size or 96
    return {**given, "image_size": size, "pretrained_on": pretrained_on}
