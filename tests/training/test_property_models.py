"""Models that begin with the weights of others."""

import pytest
import torch
from tiny_models import NACL, SRTIO3, WITH_ERROR_HEAD, tiny_model

import hf_crystal
from hf_crystal.training import TargetArguments
from hf_crystal.training.property_models import build_property_model

TARGETS = [TargetArguments(name="formation_energy", unit="eV/atom")]
BATCH = hf_crystal.CrystalFeatureExtractor()([NACL, SRTIO3])


def test_a_crystalframer_begins_as_a_crystalformer_and_learns_angles(tmp_path):
    former = tiny_model(**WITH_ERROR_HEAD)
    former.save_pretrained(tmp_path)
    section = {"model_type": "crystalframer", "pretrained": str(tmp_path), "num_angular_basis": 8, "angular_gain": 3.0}
    framer = build_property_model(section, TARGETS).eval()
    assert (framer.config.model_type, framer.config.num_angular_basis, framer.error_head) == ("crystalframer", 8, None)
    torch.testing.assert_close(framer(**BATCH).logits, former(**BATCH).logits[:, :1])
    framer(**BATCH, labels=torch.zeros(2, 1)).loss.backward()
    angular = [weight for name, weight in framer.named_parameters() if name.endswith("value_angular")]
    assert len(angular) == 2 and all(weight.grad.abs().sum() > 0 for weight in angular)


@pytest.mark.parametrize(
    ("changes", "message"), [({"radial_gain": 1.5}, "radial_gain"), ({"hidden_size": 8}, "hidden")]
)
def test_frames_for_another_crystalformer_are_refused(tmp_path, changes, message):
    tiny_model().save_pretrained(tmp_path)
    section = {"model_type": "crystalframer", "pretrained": str(tmp_path), **changes}
    with pytest.raises(ValueError, match=f"model.{message}.*the pretrained model"):
        build_property_model(section, TARGETS)


def test_frames_cannot_be_dropped(tmp_path):
    tiny_model("crystalframer").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model.model_type='crystalformer': the pretrained model .* 'crystalframer'"):
        build_property_model({"model_type": "crystalformer", "pretrained": str(tmp_path)}, TARGETS)
