"""What a property model knows about its predictions: a gap that is not negative."""

import pytest
import torch
from tiny_models import IRON, NACL, SRTIO3, tiny_model

import hf_crystal

BATCH = hf_crystal.CrystalFeatureExtractor()([NACL, SRTIO3, IRON])


@pytest.mark.parametrize("architecture", ["crystalformer", "crystalframer"])
def test_the_gap_is_never_negative(architecture):
    free = tiny_model(architecture)
    bounded = tiny_model(architecture, gap_target="band_gap")
    with torch.no_grad():
        raw = free(**BATCH).logits
        middle = raw[:, 1].median()
        for model in (free, bounded):
            model.head.target_mean[1] -= middle  # one is below 0, one at 0, one above
        raw, clipped = free(**BATCH).logits, bounded(**BATCH).logits
        assert raw[:, 1].min() < 0 < raw[:, 1].max()
        assert torch.equal(clipped, torch.stack([raw[:, 0], raw[:, 1].clamp_min(0)], dim=1))
        bounded.config.gap_target = "another"
        assert bounded(**BATCH).logits.equal(raw)
        bounded.config.gap_target = "band_gap"
        assert bounded.train()(**BATCH).logits[:, 1].min() < 0  # clipped, it would have no gradient
