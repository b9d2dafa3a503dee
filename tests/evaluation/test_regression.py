import json
import math

import numpy as np
import pytest

from hf_crystal.evaluation import regression_metrics


@pytest.fixture
def figures():
    generator = np.random.default_rng(3)
    labels = generator.normal(2.0, 3.0, (400, 2))
    predictions = labels + generator.normal(0.1, 0.5, labels.shape)
    labels[::4, 1] = np.nan
    return predictions, labels


def test_figures_are_the_textbook_ones(figures):
    predictions, labels = figures
    report = regression_metrics(
        predictions, labels, target_names=["e", "g"], target_units=["eV", "GPa"], baseline_mean=[1.9, 2.2]
    )
    for index, (name, unit, mean) in enumerate((("e", "eV", 1.9), ("g", "GPa", 2.2))):
        known = ~np.isnan(labels[:, index])
        truth, residual = labels[known, index], (predictions - labels)[known, index]
        target = report.target(name)
        assert (target.name, target.unit, target.n) == (name, unit, known.sum())
        assert target.mae == pytest.approx(np.abs(residual).mean(), rel=1e-14)
        assert target.rmse == pytest.approx(math.sqrt((residual**2).mean()), rel=1e-14)
        assert target.r2 == pytest.approx(
            1 - residual.var() / truth.var() - residual.mean() ** 2 / truth.var(), rel=1e-12
        )
        assert target.baseline_mae == pytest.approx(np.abs(truth - mean).mean(), rel=1e-14)
    assert "regression-v1" in report.protocol


def test_gaps_have_their_error_over_non_metals():
    labels = np.array([[0.0, 1.0], [2.0, 1.0], [np.nan, 1.0], [4.0, 1.0]])
    errors = np.array([[0.1, 0.5], [0.3, 0.5], [9.0, 0.5], [-0.5, 0.5]])
    gap, energy = regression_metrics(labels + errors, labels, target_names=["Band_gap_pbe", "energy"]).targets
    assert (gap.n, gap.nonmetal_n) == (3, 2)
    assert (gap.mae, gap.nonmetal_mae) == (pytest.approx(0.3), pytest.approx(0.4))
    assert 0.29 < gap.nonmetal_mae_interval[0] <= gap.nonmetal_mae_interval[1] < 0.51
    assert energy.nonmetal_n is energy.nonmetal_mae is energy.nonmetal_mae_interval is None
    metals = regression_metrics(np.ones(3), np.zeros(3), target_names=["gap"]).targets[0]
    assert metals.nonmetal_n is None


def test_mean_predictor_has_no_skill():
    labels = np.array([1.0, 2.0, 6.0])
    target = regression_metrics(np.full(3, 3.0), labels, num_bootstrap=0).targets[0]
    assert target.mae == target.baseline_mae == 2.0
    assert target.r2 == pytest.approx(0.0)
    assert target.mae_interval is None


def test_interval_covers_the_true_error_as_often_as_it_says():
    """Coverage over repeated experiments whose true MAE is known: sqrt(2/pi) for unit normal errors."""
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        errors = generator.normal(0, 1, 120)
        low, high = regression_metrics(errors, np.zeros(120), num_bootstrap=200, seed=trial).targets[0].mae_interval
        covered += low <= math.sqrt(2 / math.pi) <= high
    # 95 % of 200 with a binomial spread of 3; the percentile bootstrap is a little too narrow at n = 120
    assert 178 <= covered <= 198


def test_interval_is_reproducible_and_narrows(figures):
    predictions, labels = figures
    once, again = (regression_metrics(predictions, labels).targets[0].mae_interval for _ in range(2))
    few = regression_metrics(predictions[:40], labels[:40]).targets[0].mae_interval
    assert once == again
    assert few[1] - few[0] > 2 * (once[1] - once[0])


def test_plain_values_survive_json(figures):
    predictions, labels = figures
    labels[:, 1] = np.where(np.arange(400) == 0, 1.0, np.nan)
    values = json.loads(json.dumps(regression_metrics(predictions, labels).to_dict(), allow_nan=False))
    assert values["targets"][1]["r2"] is None
    assert values["targets"][1]["n"] == 1
    assert values["targets"][0]["name"] == "target_0"


def test_one_figure_only_where_there_is_one(figures):
    predictions, labels = figures
    assert regression_metrics(predictions[:, 0], labels[:, 0], num_bootstrap=0).mae > 0
    report = regression_metrics(predictions, labels, num_bootstrap=0)
    with pytest.raises(ValueError, match="mae of 2 targets"):
        _ = report.mae
    with pytest.raises(KeyError, match="target_1"):
        report.target("volume")


@pytest.mark.parametrize(
    ("predictions", "labels", "options", "message"),
    [
        (np.zeros(3), np.zeros(4), {}, r"\(3, 1\) but labels \(4, 1\)"),
        (np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), {}, "expected"),
        (np.zeros(3), np.full(3, np.nan), {}, "none of the 3 rows"),
        (
            np.array([0, np.nan, np.nan]),
            np.array([np.nan, 1.0, 2.0]),
            {},
            "2 predictions are not finite, the first in row 1",
        ),
        (np.zeros(2), np.array([0.0, np.inf]), {}, "1 labels are not finite, the first in row 1"),
        (np.zeros(3), np.zeros(3), {"target_names": ["a", "b"]}, "1 columns of predictions but 2 target_names"),
        (np.zeros(3), np.zeros(3), {"baseline_mean": [1, 2]}, "baseline_mean has 2 values for 1 targets"),
    ],
)
def test_what_does_not_fit_is_named(predictions, labels, options, message):
    with pytest.raises(ValueError, match=message):
        regression_metrics(predictions, labels, **options)
