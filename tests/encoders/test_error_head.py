"""What a property model knows about its predictions: a gap that is not negative, standard errors, metals."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_models import IRON, NACL, SRTIO3, WITH_ERROR_HEAD, tiny_model

import hf_crystal
from hf_crystal.training.arguments import TargetArguments
from hf_crystal.training.property_models import build_property_model

AUTO = hf_crystal.AutoModelForCrystalPropertyPrediction
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


def outputs(model):
    with torch.no_grad():
        return model(**BATCH)


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("architecture", ["crystalformer", "crystalframer"])
def test_the_error_head_is_saved_and_changes_no_prediction(architecture, states, tmp_path):
    model = tiny_model(architecture, **WITH_ERROR_HEAD, error_head_states=states)
    with torch.no_grad():
        model.error_head.interval_factor.copy_(torch.tensor([2.0, 3.0]))
        model.error_head.metal_proj.bias.fill_(-50.0)  # no metals
    model.save_pretrained(tmp_path)
    loaded = AUTO.from_pretrained(tmp_path)
    found, again = outputs(model), outputs(loaded)
    assert set(found) == {"logits", "pooler_output", "standard_errors", "interval_widths", "metal_probability"}
    for name, value in found.items():
        assert torch.equal(again[name], value), name
    plain = tiny_model(architecture, gap_target="band_gap")
    plain.load_state_dict(model.state_dict(), strict=False)
    assert set(outputs(plain)) == {"logits", "pooler_output"}
    assert torch.equal(outputs(plain).logits, found.logits)
    assert (found.standard_errors > 0).all()
    torch.testing.assert_close(found.interval_widths, found.standard_errors * torch.tensor([2.0, 3.0]))
    half = AUTO.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.error_head.interval_factor.dtype == torch.float32


def test_the_error_head_reads_elements_and_the_states_before_every_block(monkeypatch):
    model = tiny_model(**WITH_ERROR_HEAD, error_head_states=True)
    with torch.no_grad():
        encoded = model.encoder(**BATCH, output_summary=True, output_hidden_states=True)
        means = [state[-1, :2].mean(0) for state in encoded.hidden_states]  # iron: two atoms
        torch.testing.assert_close(encoded.summary[-1, 118:], torch.cat(means))
        assert [row.nonzero()[:, 0].tolist() for row in encoded.summary[:, :118]] == [[10, 16], [7, 21, 37], [25]]
        assert torch.equal(encoded.summary[:, -16:], encoded.pooler_output)
        logarithms, _ = model.error_head(model.error_inputs(encoded.summary))
        found = model(**BATCH)
        assert torch.equal(found.standard_errors, logarithms.exp() * model.head.target_std)
        model.error_head.dense.weight[:, 118:134] += 1.0
        other = model(**BATCH)
        assert not torch.allclose(other.standard_errors, found.standard_errors)
        assert torch.equal(other.pooler_output, found.pooler_output) and "summary" not in found
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        torch.testing.assert_close(model(**BATCH).standard_errors, other.standard_errors)
    model.drop_error_head()
    assert not model.config.error_head_states
    assert model(**BATCH).standard_errors is None


def test_other_settings_than_the_saved_ones_have_no_errors(tmp_path, caplog):
    tiny_model("crystalframer", **WITH_ERROR_HEAD).save_pretrained(tmp_path)
    for change in ({}, {"cutoff_sigmas": 6.0, "adaptive_cutoff_sigmas": None}, {"gap_target": None}):
        assert outputs(AUTO.from_pretrained(tmp_path, **change)).standard_errors is not None
    for change in ({"frame_method": "pca"}, {"decay": "yukawa", "frame_method": "none"}, {"cutoff_sigmas": 2.0}):
        assert outputs(AUTO.from_pretrained(tmp_path, **change)).standard_errors is None
        assert f"Settings {[*change]} are not those saved" in caplog.text


def test_geometry_is_saved_and_goes_with_the_error_head(tmp_path):
    model = tiny_model(**WITH_ERROR_HEAD, error_head_states=True, error_head_geometry=True)
    found, names = outputs(model), ("strain", "distortion")
    model.save_pretrained(tmp_path)
    again = outputs(AUTO.from_pretrained(tmp_path))
    for name in names:
        assert found[name].shape == (3,)
        torch.testing.assert_close(again[name], found[name])
    with torch.no_grad():
        model.error_head.strain_proj.bias += 1.0
        model.error_head.distortion_proj.bias -= 2.0
    torch.testing.assert_close(outputs(model).strain, found.strain + 1.0)
    torch.testing.assert_close(outputs(model).distortion, found.distortion - 2.0)
    model.train()(**BATCH, labels=torch.zeros(3, 2))
    assert all(outputs(model.eval()).get(name) is None for name in names)  # of the weights before
    model.drop_error_head()
    assert not model.config.error_head_geometry


def test_states_are_weighted_by_occupancy():
    model = tiny_model(**WITH_ERROR_HEAD, error_head_states=True)
    shares = torch.zeros(*BATCH["atomic_numbers"].shape, 118)
    numbers, there = BATCH["atomic_numbers"], BATCH["attention_mask"].float()
    shares.scatter_(2, (numbers - 1).clamp_min(0)[..., None], there[..., None])
    shares[0, 0] *= 0.25
    with torch.no_grad():
        encoded = model.encoder(**BATCH, occupancies=shares, output_summary=True)
    elements = model.encoder.embeddings.weight[torch.tensor([10, 16])]
    assert encoded.summary[0, :118].nonzero()[:, 0].tolist() == [10, 16]
    torch.testing.assert_close(encoded.summary[0, 118:134], (0.25 * elements[0] + elements[1]) / 1.25)


def test_folders_without_the_setting_read_embeddings_alone(tmp_path):
    model = tiny_model(**WITH_ERROR_HEAD)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    del saved["error_head_states"]
    path.write_text(json.dumps(saved), encoding="utf-8")
    assert torch.equal(outputs(AUTO.from_pretrained(tmp_path)).standard_errors, outputs(model).standard_errors)


def test_a_metal_has_no_gap():
    model = tiny_model(**WITH_ERROR_HEAD)
    with torch.no_grad():
        model.head.target_mean[1] += 10.0
        model.error_head.metal_proj.weight.zero_()
        model.error_head.metal_proj.bias.fill_(-0.1)
        other = outputs(model)
        model.error_head.metal_proj.bias.fill_(0.1)
    found = outputs(model)
    assert (found.metal_probability > 0.5).all() and (other.metal_probability < 0.5).all()
    assert found.logits[:, 1].eq(0).all() and (other.logits[:, 1] > 1).all()
    assert torch.equal(found.logits[:, 0], other.logits[:, 0])


def test_standard_errors_go_with_the_names_of_the_targets(tmp_path):
    model = tiny_model(**WITH_ERROR_HEAD)
    model.save_pretrained(tmp_path)
    found = outputs(AUTO.from_pretrained(tmp_path, target_names=["band_gap"], target_units=["eV"]))
    wanted = outputs(model)
    torch.testing.assert_close(found.standard_errors, wanted.standard_errors[:, 1:])
    torch.testing.assert_close(found.metal_probability, wanted.metal_probability)
    alone = AUTO.from_pretrained(tmp_path, target_names=["formation_energy"], target_units=["eV/atom"])
    assert outputs(alone).metal_probability is None
    new = {"target_names": ["heat", "band_gap"], "target_units": ["K", "eV"], "ignore_mismatched_sizes": True}
    changed = AUTO.from_pretrained(tmp_path, **new)
    assert changed.error_head is None and changed.config.error_head_size == 0


def test_training_drops_the_errors_of_the_model_it_starts_from(tmp_path):
    tiny_model(**WITH_ERROR_HEAD).save_pretrained(tmp_path)
    targets = [TargetArguments(name="band_gap", unit="eV")]
    model = build_property_model({"model_type": "crystalformer", "pretrained": str(tmp_path)}, targets)
    assert model.error_head is None
    model.save_pretrained(tmp_path / "trained")
    assert outputs(AUTO.from_pretrained(tmp_path / "trained")).standard_errors is None


def test_the_interval_of_a_doubtful_metal_holds_zero_and_the_gap():
    model = tiny_model(**WITH_ERROR_HEAD)
    with torch.no_grad():
        model.head.target_mean[1] = 5.0  # gaps above 0
        model.error_head.metal_proj.weight.zero_()
        found = {}
        for bias in (-3.0, -1.0, 1.0, 3.0):
            model.error_head.metal_proj.bias.fill_(bias)
            found[bias] = outputs(model)
        gap, length = found[-3.0].logits[:, 1], found[-3.0].interval_widths[:, 1]
    assert (gap > length).all()
    torch.testing.assert_close(length, found[-3.0].standard_errors[:, 1])
    torch.testing.assert_close(found[-1.0].interval_widths[:, 1], gap)
    torch.testing.assert_close(found[1.0].interval_widths[:, 1], gap + length)
    torch.testing.assert_close(found[3.0].interval_widths[:, 1], length)
    for bias, other in found.items():
        assert (other.logits[:, 1] == 0).all() == (bias > 0)
        torch.testing.assert_close(other.interval_widths[:, 0], found[-3.0].interval_widths[:, 0])


def test_after_training_with_labels_there_are_no_errors(tmp_path):
    model = tiny_model(**WITH_ERROR_HEAD, error_head_states=True)
    labels = torch.zeros(len(BATCH["atomic_numbers"]), 2)
    assert model(**BATCH, labels=labels).standard_errors is not None
    model.train()
    with torch.no_grad():
        assert model(**BATCH, labels=labels).standard_errors is not None
    assert model(**BATCH, labels=labels).standard_errors is None
    names = set(model.state_dict())
    model.save_pretrained(tmp_path)
    loaded = AUTO.from_pretrained(tmp_path)
    assert outputs(loaded).standard_errors is None and outputs(loaded).metal_probability is None
    assert set(loaded.state_dict()) == names  # what optimizers and adapters hold stays
    with pytest.raises(ValueError, match=r"num_labels=1: the model predicts \['"):
        AUTO.from_pretrained(tmp_path, num_labels=1)


def test_the_error_head_passes_no_gradient_to_the_encoder():
    model = tiny_model(**WITH_ERROR_HEAD)
    model(**BATCH).standard_errors.sum().backward()
    assert all(weight.grad is None for weight in model.encoder.parameters())
    assert model.error_head.out_proj.weight.grad.abs().sum() > 0


def test_a_negative_width_is_refused():
    with pytest.raises(StrictDataclassError, match="error_head_size=-1"):
        tiny_model(error_head_size=-1)


def test_scales_stay_between_those_of_the_fit(tmp_path):
    bounds = [[-1.0, 0.5], [-2.0, 1.0]]
    model = tiny_model(**WITH_ERROR_HEAD, error_scale_bounds=bounds)
    std = model.head.target_std
    for factor, place in ((1e4, 1), (-1e4, 0)):
        with torch.no_grad():
            model.error_head.out_proj.bias.fill_(factor)
        edge = torch.tensor(bounds)[:, place].exp() * std
        torch.testing.assert_close(outputs(model).standard_errors, edge.expand(len(BATCH["cell"]), -1))
    model.save_pretrained(tmp_path)
    assert AUTO.from_pretrained(tmp_path).error_head.bounds == bounds
    swapped = AUTO.from_pretrained(tmp_path, target_names=["band_gap"], target_units=["eV"])
    torch.testing.assert_close(outputs(swapped).standard_errors, outputs(model).standard_errors[:, 1:])
    assert swapped.config.error_scale_bounds == bounds[1:]
    with pytest.raises(ValueError, match="error_scale_bounds"):
        tiny_model(**WITH_ERROR_HEAD, error_scale_bounds=[[0.0, 1.0]])
