"""Ensembles: their spread, the error model learned from labels, and the measure of calibration."""

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import IRON, NACL, OVERLAPPING, SRTIO3, tiny_model

import hf_crystal
from hf_crystal import CrystalFeatureExtractor
from hf_crystal.crystals.record import CrystalInputError
from hf_crystal.uncertainty import (
    ErrorModel,
    conformal_quantiles,
    fit_error_model,
    measure_calibration,
    predict_ensemble,
)
from hf_crystal.viz.calibration import plot_calibration, plot_rejection


def drawn(seed: int, scale: float, floor: float, count: int = 20_000):
    """Predictions whose errors follow the error model exactly."""
    rng = np.random.default_rng(seed)
    spread = rng.gamma(2.0, 0.05, count)
    labels = rng.normal(size=count)
    return labels + ErrorModel(scale, floor).sigma(spread) * rng.normal(size=count), spread, labels


def test_mean_and_spread_are_those_of_the_members():
    models = [tiny_model("crystalformer", seed) for seed in range(3)]
    batch = hf_crystal.CrystalFeatureExtractor()([NACL, SRTIO3, IRON])
    with torch.no_grad():
        values = np.stack([model(**batch).logits[:, 1].double().numpy() for model in models])
    found = predict_ensemble([NACL, SRTIO3, IRON], models, target="band_gap", batch_size=2)
    np.testing.assert_allclose(found.mean, values.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found.spread, values.std(axis=0, ddof=1), atol=1e-5)
    assert (found.target, found.unit) == ("band_gap", "eV")
    assert predict_ensemble([NACL], models).target == "formation_energy"


def test_an_ensemble_says_what_is_doubtful():
    models = [tiny_model("crystalformer", 0), tiny_model("crystalframer", 1)]
    alloy = {**NACL, "species": [{"Na": 0.5, "K": 0.5}, "Cl"]}
    del alloy["atomic_numbers"]
    found = predict_ensemble([NACL, alloy], models)
    assert found.warnings[0] == () and len(found.warnings[1]) == 1
    assert "mixtures" in found.warnings[1][0]
    assert np.isfinite(found.mean).all()


def test_an_error_model_is_recovered_and_its_bars_are_honest():
    fitted = fit_error_model(*drawn(0, scale=2.5, floor=0.03))
    assert fitted.scale == pytest.approx(2.5, rel=0.05)
    assert fitted.floor == pytest.approx(0.03, rel=0.2)
    mean, spread, labels = drawn(1, scale=2.5, floor=0.03)
    honest = measure_calibration(mean, fitted.sigma(spread), labels)
    short = measure_calibration(mean, spread, labels)
    assert honest.miscalibration < 0.01
    assert short.miscalibration > 0.2
    assert (short.coverage < short.levels).all()
    np.testing.assert_allclose(honest.bins[:, 1] / honest.bins[:, 0], 1.0, atol=0.1)
    assert honest.rank_correlation > 0.2
    figure = plot_calibration({"spread": short, "fitted": honest}, unit="eV")
    np.testing.assert_allclose(figure.axes[0].lines[2].get_ydata(), honest.coverage)


def test_intervals_hold_what_they_name_where_errors_have_long_tails():
    rng = np.random.default_rng(3)
    spread = rng.gamma(2.0, 0.05, 20_000)
    labels = np.zeros(20_000)
    mean = spread * rng.standard_t(2.5, 20_000)
    fitted = fit_error_model(mean[:10_000], spread[:10_000], labels[:10_000])
    sigma = fitted.sigma(spread[10_000:])
    normal = measure_calibration(mean[10_000:], sigma, labels[10_000:])
    honest = measure_calibration(mean[10_000:], sigma, labels[10_000:], model=fitted)
    assert normal.miscalibration > 0.1
    assert honest.miscalibration < 0.01
    inside = np.abs(mean[10_000:]) <= fitted.half_width(spread[10_000:], 0.8)
    assert inside.mean() == pytest.approx(0.8, abs=0.01)
    np.testing.assert_allclose(ErrorModel(2.0, 0.0).half_width(1.0, 0.95), 2 * 1.959964, rtol=1e-5)
    with pytest.raises(ValueError, match=r"level is 0\.99; accepted: 0\.05 to 0\.95"):
        fitted.half_width(0.1, 0.99)


def test_unknown_labels_are_left_out():
    mean, spread, labels = drawn(2, 1.0, 0.1, count=500)
    labels[::2] = np.nan
    assert measure_calibration(mean, spread, labels).num_crystals == 250
    assert measure_calibration([1.0, 2.0], [0.1, 0.1], [1.0, 2.0]).rank_correlation == 0.0


def test_wrong_arguments():
    models = [tiny_model(seed=0), tiny_model(seed=1)]
    with pytest.raises(ValueError, match="at least two"):
        predict_ensemble([NACL], models[:1])
    with pytest.raises(ValueError, match="model 0 has .* the ensemble predicts 'volume'"):
        predict_ensemble([NACL], models, target="volume")
    with pytest.raises(ValueError, match="the list is empty"):
        predict_ensemble([], models)
    with pytest.raises(CrystalInputError, match="overlapping"):
        predict_ensemble([NACL, OVERLAPPING], models)
    with pytest.raises(ValueError, match=r"lengths are \[2, 2, 1\]"):
        fit_error_model([1, 2], [1, 1], [1])
    with pytest.raises(ValueError, match="0 crystals with a label"):
        fit_error_model([1, 2], [1, 1], [np.nan, np.nan])
    with pytest.raises(ValueError, match="1 negative entries"):
        measure_calibration([1, 2], [1, -1], [1, 1])


@pytest.fixture
def script(monkeypatch):
    """Imports a script by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "scripts"))
    return importlib.import_module


@pytest.mark.parametrize("states", [False, True])
def test_a_fitted_error_head_knows_the_scale_of_errors_and_metals(script, states):
    """States of which one number is the scale of the errors, and another says what a metal is."""
    script = script("fit_error_heads")
    model = tiny_model(gap_target="band_gap", error_head_size=16, error_head_states=states)
    rng = np.random.default_rng(0)
    pooled = 3.0 + rng.normal(size=(6000, 166 if states else 16)).astype(np.float32)
    with torch.no_grad():
        predicted = model.head.to_physical(model.head(torch.tensor(script.embeddings_of(model, pooled)))).numpy()
    first = 118 if states else 0
    pooled[:, :first] = 0.0  # no element
    labels = predicted + np.exp(pooled[:, first : first + 1] - 4.0) * rng.laplace(size=predicted.shape)
    labels[:, 1] = np.where(pooled[:, first + 1] > 3.0, 0.0, labels[:, 1].clip(0.01))
    labels[::7, 0] = np.nan
    folds, seen = np.arange(6000) % 10, np.arange(6000) < 4000
    script.fit_head(model, pooled[seen], predicted[seen], labels[seen], folds[seen], epochs=25)
    found = script.figures(model, pooled[~seen], predicted[~seen], labels[~seen])
    energy, gap = found["formation_energy"], found["band_gap"]
    assert energy["rows"] < gap["rows"]
    for target, most in ((energy, 0.94), (gap, 0.98)):  # where a metal is in doubt, intervals hold zero and the gap
        assert 0.86 < target["coverage of 90 %"] < most
        assert target["mae without the least sure 0 to 90 %"][5] < 0.7 * target["mae"]
    assert energy["spearman"] > 0.4
    assert 0.6 < gap["within a standard error, not called metals"] < 0.76
    assert gap["right about metals"] > (0.8 if states else 0.88)  # with 64 inputs instead of 32
    assert gap["mae"] < gap["mae clipped"] <= gap["mae unclipped"]


def test_fitted_geometry_tells_crystals_that_are_not_at_rest(script):
    """Of one kind of crystal even a random encoder sees its size, and where its atoms are."""
    cells = [[a * (i == j) for i in range(3) for j in range(3)] for a in np.linspace(4.0, 4.04, 120)]
    rows = {
        "material_id": [f"salt-{place}" for place in range(120)],
        "lattice": cells,
        "frac_coords": [[0, 0, 0, 0.5, 0.5, 0.5]] * 120,
        "atomic_numbers": [[55, 17]] * 120,
        "split": ["train"] * 80 + ["val"] * 40,
    }
    table = pd.DataFrame(rows).map(lambda value: np.array(value) if isinstance(value, list) else value)
    model = tiny_model(gap_target="band_gap", error_head_size=16, error_head_states=True)
    before = model.error_head.state_dict()
    found = script("fit_geometry").fit_geometry(model, CrystalFeatureExtractor(), table, 80)
    warned = found["warned"]
    assert warned["all edges +0%"]["error of the strain"] < 0.03 and found["validation rows"] == 40
    assert warned["all edges +10%"]["edges"] > 0.8 > 0.2 > warned["all edges +0%"]["any"]
    assert warned["one element's atoms"]["any"] > 0.5 and warned["one edge"]["any"] > warned["one edge"]["edges"]
    assert all(torch.equal(model.error_head.state_dict()[name], value) for name, value in before.items())


def test_conformal_quantiles_count_the_new_crystal():
    assert conformal_quantiles(np.arange(9.0), [0.5, 0.9, 0.99]).tolist() == [4.0, 8.0, 8.0]


def test_the_rejection_curve_shows_the_errors():
    axes = plot_rejection({"test": [0.4, 0.2]}, unit="eV").axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[0.0, 0.4], [50.0, 0.2]]
