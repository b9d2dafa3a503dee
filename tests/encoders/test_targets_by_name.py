"""Targets of a loaded head go by their names: another order, some of them, other ones, other units."""

import logging

import pytest
import torch
from tiny_models import IRON, NACL, SRTIO3, save_tiny_model, tiny_model
from transformers.utils.logging import warning_once

import hf_crystal

NAMES, UNITS = ["formation_energy", "band_gap"], ["eV/atom", "eV"]
AUTO = hf_crystal.AutoModelForCrystalPropertyPrediction


@pytest.fixture(scope="module", params=["crystalformer", "crystalframer"])
def folder(request, tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "saved", request.param)


def predictions(model) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        logits = model(**hf_crystal.CrystalFeatureExtractor()([NACL, SRTIO3, IRON])).logits
    return dict(zip(model.config.target_names, logits.T, strict=True))


@pytest.mark.parametrize("way", ["auto", "class", "config"])
@pytest.mark.parametrize("names", [["band_gap", "formation_energy"], ["band_gap"], ["formation_energy"]])
def test_saved_targets_keep_their_predictions(folder, way, names):
    saved = AUTO.from_pretrained(folder)
    targets = {"target_names": names, "target_units": [UNITS[NAMES.index(name)] for name in names]}
    if way == "config":
        config = type(saved.config).from_pretrained(folder, **targets)
        model = type(saved).from_pretrained(folder, config=config)
        assert config.target_names == names
    else:
        model = (AUTO if way == "auto" else type(saved)).from_pretrained(folder, **targets)
    assert {name: getattr(model.config, name) for name in targets} == targets
    assert model.config.id2label == dict(enumerate(names))
    assert not model.training
    wanted, found = predictions(saved), predictions(model)
    assert list(found) == names
    for name in names:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-6, atol=1e-6)


def test_units_follow_the_names(folder, tmp_path):
    model = AUTO.from_pretrained(folder, target_names=["band_gap"])
    assert model.config.target_units == ["eV"]
    model.save_pretrained(tmp_path / "again")
    again = AUTO.from_pretrained(tmp_path / "again")
    assert (again.config.target_names, again.config.target_units) == (["band_gap"], ["eV"])
    torch.testing.assert_close(predictions(again), predictions(model))


def test_other_names_are_an_error_or_a_new_head(folder, caplog, monkeypatch):
    other = {"target_names": ["bulk_modulus", "shear_modulus"], "target_units": ["GPa", "GPa"]}
    with pytest.raises(ValueError, match=r"'shear_modulus'\] are none of the targets .*'band_gap'\]"):
        AUTO.from_pretrained(folder, **other)
    monkeypatch.setattr(logging.getLogger("hf_crystal"), "propagate", True)
    warning_once.cache_clear()  # another case has had this warning
    model, info = AUTO.from_pretrained(folder, ignore_mismatched_sizes=True, output_loading_info=True, **other)
    assert "weights of the targets ['bulk_modulus', 'shear_modulus'] are new" in caplog.text
    assert info["missing_keys"] == set()
    saved = AUTO.from_pretrained(folder)
    for name, weight in model.head.named_parameters():
        assert not torch.equal(weight, saved.head.get_parameter(name)), name
    torch.testing.assert_close(model.encoder.state_dict(), saved.encoder.state_dict(), rtol=0, atol=0)
    assert (model.head.target_mean.tolist(), model.head.target_std.tolist()) == ([0.0, 0.0], [1.0, 1.0])


def test_a_target_is_added_to_the_saved_ones(folder):
    names = ["density", "band_gap", "formation_energy"]
    added = {"target_names": names, "target_units": ["g/cm3", "eV", "eV/atom"], "ignore_mismatched_sizes": True}
    half = AUTO.from_pretrained(folder, dtype=torch.bfloat16, **added)
    assert half.head.out_proj.weight.dtype == torch.bfloat16
    assert half.head.target_std.dtype == torch.float32
    found, wanted = predictions(AUTO.from_pretrained(folder, **added)), predictions(AUTO.from_pretrained(folder))
    for name in NAMES:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "units", "message"),
    [
        (NAMES, ["eV/atom", "meV"], "band_gap of .* is in 'eV' in the checkpoint, not in 'meV'"),
        (NAMES[::-1], UNITS, "band_gap of .* is in 'eV' in the checkpoint, not in 'eV/atom'"),
        (NAMES, ["eV/atom", "eV", "K"], "must be one unit for each"),
        (["band_gap", "band_gap"], ["eV", "eV"], "one unit for each"),
    ],
)
def test_other_units_are_an_error(folder, names, units, message):
    with pytest.raises(ValueError, match=message):
        AUTO.from_pretrained(folder, target_names=names, target_units=units, ignore_mismatched_sizes=True)


def test_a_unit_can_be_given_where_none_is_saved(tmp_path):
    model = tiny_model()
    model.config.target_units = ["", ""]
    model.save_pretrained(tmp_path)
    assert AUTO.from_pretrained(tmp_path, target_units=UNITS).config.target_units == UNITS


def test_an_encoder_gets_a_head_for_any_target(tmp_path):
    tiny_model().encoder.save_pretrained(tmp_path)
    model = AUTO.from_pretrained(tmp_path, target_names=["heat"], target_units=["K"])
    assert model.config.target_names == ["heat"]
    assert model.head.out_proj.out_features == 1
