"""One network of each of timm's modules: it works and sees every pixel, or is refused with what works."""

import pytest
import timm
import torch
from test_backbones import unseen

from acl_plugin.errors import UsageError
from acl_plugin.models.encoder import Encoder
from conftest import spec

VIT = {"depth": 1, "embed_dim": 24, "num_heads": 3}
FOUR = {"depths": (1, 1, 1, 1)}
SWIN = {**FOUR, "embed_dim": 12}
LAYERS = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}
NETWORKS: dict = {
    "beit_base_patch16_224": VIT,
    "halonet_h1": {},
    "eca_botnext26ts_256": {},
    "lambda_resnet26t": {},
    "test_byobnet": {},
    "mobileone_s1": {},
    "repvgg_a0": {},
    "gernet_s": {},
    "cait_xxs24_224": {"depth": 1, "embed_dim": 24, "num_heads": 3, "depth_token_only": 1},
    "coat_tiny": {},
    "coat_lite_tiny": {},
    "convit_tiny": {"depth": 2, "embed_dim": 12, "local_up_to_layer": 1},
    "convmixer_768_32": {},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)},
    "convnext_tiny": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)},
    "crossvit_tiny_240": {},
    "cs3darknet_focus_s": {},
    "cs3darknet_s": {},
    "davit_tiny": {"depths": (1, 1, 1, 1), "embed_dims": (12, 24, 24, 24), "num_heads": (3, 3, 3, 3)},
    "deit_tiny_patch16_224": VIT,
    "deit_tiny_distilled_patch16_224": VIT,
    "deit3_small_patch16_224": VIT,
    "densenet121": {"growth_rate": 4, "block_config": (1, 1, 1, 1)},
    "dla46x_c": {},
    "dpn48b": {},
    "edgenext_xx_small": {},
    "efficientformer_l1": {},
    "efficientformerv2_s0": {},
    "test_efficientnet": {},
    "mobilenetv2_035": {},
    "efficientnet_b0": {},
    "tf_efficientnet_b0": {},
    "tinynet_e": {},
    "efficientvit_b0": {},
    "efficientvit_m0": {},
    "eva02_tiny_patch14_224": {"depth": 1},
    "fastvit_t8": {},
    "focalnet_tiny_srf": {},
    "gcvit_xxtiny": {},
    "ghostnet_050": {},
    "hardcorenas_a": {},
    "hgnetv2_b0": {},
    "hgnet_tiny": {},
    "hiera_tiny_224": {"stages": (1, 1, 1, 1), "embed_dim": 12},
    "sam2_hiera_tiny": {"stages": (1, 1, 1, 1), "embed_dim": 12, "global_att_blocks": ()},
    "hrnet_w18_small": {},
    "inception_next_tiny": {"depths": (1, 1, 1, 1), "dims": (16, 16, 16, 16)},
    "inception_resnet_v2": {},
    "inception_v3": {},
    "inception_v4": {},
    "levit_128s": {},
    "levit_conv_128s": {},
    "coatnet_pico_rw_224": {},
    "maxvit_rmlp_pico_rw_256": {},
    "poolformer_s12": {},
    "gmlp_ti16_224": {},
    "mixer_s16_224": {},
    "resmlp_12_224": {},
    "lcnet_035": {},
    "mobilenetv3_small_050": {},
    "fbnetv3_b": {},
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "mvitv2_tiny": {},
    "mvitv2_small_cls": {},
    "nasnetalarge": {"num_features": 384, "stem_size": 12},
    "nest_tiny": {},
    "nextvit_small": {},
    "nf_regnet_b0": {},
    "nf_resnet26": {},
    "eca_nfnet_l0": {},
    "pit_ti_224": {},
    "pit_ti_distilled_224": {},
    "pnasnet5large": {},
    "pvt_v2_b0": {},
    "rdnet_tiny": {},
    "regnetx_002": {},
    "regnety_002": {},
    "repghostnet_050": {},
    "repvit_m0_9": {},
    "res2net50_26w_4s": {"layers": (1, 1, 1, 1)},
    "resnest14d": {},
    "resnet10t": {},
    "resnet18": {"channels": (8, 8, 8, 8)},
    "resnet50": LAYERS,
    "resnetblur50": LAYERS,
    "seresnextaa101d_32x8d": {"layers": (1, 1, 1, 1)},
    "resnetv2_50": LAYERS,
    "resnetv2_50d": {"layers": (1, 1, 1, 1)},
    "rexnet_100": {},
    "selecsls42": {},
    "legacy_seresnet18": {},
    "sequencer2d_s": {"layers": (1, 1, 1, 1), "embed_dims": (24, 24, 24, 24), "hidden_sizes": (6, 6, 6, 6)},
    "skresnet18": {},
    "swin_tiny_patch4_window7_224": SWIN,
    "swin_s3_tiny_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "swinv2_cr_tiny_224": SWIN,
    "swinv2_cr_tiny_ns_224": SWIN,
    "tiny_vit_5m_224": {},
    "tnt_s_patch16_224": {"depth": 1},
    "tresnet_m": {"layers": (1, 1, 1, 1)},
    "twins_svt_small": FOUR,
    "twins_pcpvt_small": FOUR,
    "vgg11": {},
    "visformer_tiny": {},
    "vit_tiny_patch16_224": VIT,
    "vit_small_patch16_36x1_224": VIT,
    "test_vit": {},
    "vit_base_patch16_siglip_224": VIT,
    "flexivit_small": VIT,
    "vit_medium_patch16_gap_256": VIT,
    "vit_tiny_patch16_384": VIT,
    "vit_tiny_r_s16_p8_224": {"depth": 1},
    "vit_base_mci_224": {"depth": 1},
    "vit_relpos_small_patch16_224": VIT,
    "vit_srelpos_small_patch16_224": VIT,
    "samvit_base_patch16_224": {"depth": 1, "embed_dim": 24, "num_heads": 3, "global_attn_indexes": ()},
    "vitamin_small_224": {"depth": 1},
    "volo_d1_224": {},
    "wrn28_10": {"depth": 10, "width": 1},
    "ese_vovnet19b_slim_dw": {},
    "ese_vovnet19b_dw": {},
    "legacy_xception": {},
    "xception41": {},
    "xcit_nano_12_p8_224": {"depth": 1},
    "xcit_tiny_12_p16_224": {"depth": 1},
}
QUICK = (
    "resnet10t",
    "vit_tiny_patch16_224",
    "mobilenetv3_small_050",
    "visformer_tiny",
    "inception_next_tiny",
    "test_byobnet",
)


def check(backbone, stem, side):
    shape = (3, side, side)
    torch.manual_seed(0)
    model = refusal = None
    try:
        model = Encoder(spec(shape, backbone, NETWORKS[backbone], stem=stem))
    except UsageError as error:
        refusal = error
    if model is None:
        assert refusal.parameter in ("backbone", "stem", "image_size")
        assert "\n" not in str(refusal)
        assert "; it takes " in str(refusal) or "; nor does it take " in str(refusal)
        return
    model(torch.rand(2, *shape)).square().sum().backward()
    assert unseen(model.eval(), shape) == 0


@pytest.mark.e2e
@pytest.mark.parametrize("stem", ["cifar", "native"])
@pytest.mark.parametrize("backbone", QUICK)
def test_a_network_works_or_is_refused(backbone, stem):
    check(backbone, stem, 32)


@pytest.mark.slow
@pytest.mark.parametrize("side", [31, 32, 224])
@pytest.mark.parametrize("stem", ["cifar", "native"])
@pytest.mark.parametrize("backbone", NETWORKS)
def test_each_network_works_or_is_refused(backbone, stem, side):
    check(backbone, stem, side)


@pytest.mark.skipif(timm.__version__ != "1.0.9", reason="later versions of timm add modules")
def test_every_module_of_timm_is_tried():
    tried = {timm.models.model_entrypoint(name).__module__ for name in NETWORKS}
    assert tried - {"acl_plugin.models.wide_resnet"} == {
        timm.models.model_entrypoint(name).__module__
        for name in timm.list_models()
        if timm.models.model_entrypoint(name).__module__.startswith("timm.")
    }
