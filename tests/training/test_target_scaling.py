import datasets
import numpy as np
import pytest

from hf_crystal.training import compute_target_scaling, target_scaling


@pytest.fixture
def labels():
    generator = np.random.default_rng(1)
    values = generator.normal([1e3, -2.0], [1e-3, 5.0], (257, 2))
    values[::3, 1] = np.nan
    return values


@pytest.mark.parametrize("form", ["dataset", "streamed", "dicts"])
def test_mean_and_population_std_of_known_labels(labels, form, monkeypatch):
    monkeypatch.setattr(target_scaling, "_READ_ROWS", 50)  # several uneven blocks
    columns = {"a": labels[:, 0].tolist(), "b": [None if np.isnan(v) else v for v in labels[:, 1]]}
    rows = datasets.Dataset.from_dict({**columns, "other": ["x"] * len(labels)})
    rows = {"dataset": rows, "streamed": rows.to_iterable_dataset(), "dicts": rows.to_list()}[form]
    scaling = compute_target_scaling(rows, ["b", "a"])
    np.testing.assert_allclose(scaling.mean, np.nanmean(labels, axis=0)[::-1], rtol=1e-14)
    # a spread of 1e-6 of the mean: the textbook formula E[x^2] - E[x]^2 would lose 12 digits
    np.testing.assert_allclose(scaling.std, np.nanstd(labels, axis=0)[::-1], rtol=1e-9)
    assert scaling.count == (int(np.isfinite(labels[:, 1]).sum()), 257)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None, None], "'a' has no known label"),
        ([0.1, 0.1, 0.1], "all 3 known training labels equal 0.1"),
        ([1.0, float("inf")], "'a' holds an infinite label"),
    ],
)
def test_useless_labels_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        compute_target_scaling([{"a": value} for value in values], ["a"])
