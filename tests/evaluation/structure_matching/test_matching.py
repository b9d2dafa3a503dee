import json
import math

import numpy as np
import pytest
from crystals_for_metrics import Decoded, cesium_chloride, chain, misbehaving_pairs, rocksalt
from pymatgen.analysis.structure_matcher import StructureMatcher

from hf_crystal.crystals.reading import CrystalInputError, as_columns, record_to_structure
from hf_crystal.evaluation import DEFAULT_MATCHER, DIFFCSP_MATCHER, MatcherSettings, filter_matches, match_rate, metre
from hf_crystal.evaluation.structure_matching import matching


@pytest.fixture(scope="module")
def disturbed():
    """Pairs around the tolerance: one structure and the same with every atom moved, some in another cell."""
    generator = np.random.default_rng(5)
    pairs = []
    for amount in np.linspace(0.0, 1.6, 12):
        for structure in (rocksalt(), chain(0.07), cesium_chloride() * (2, 1, 1)):
            moved = structure.copy()
            moved.apply_strain(generator.normal(0.0, 0.02, 3))
            for site in range(len(moved)):
                moved.translate_sites([site], generator.normal(0.0, amount, 3), frac_coords=False)
            pairs.append((moved, structure))
    return pairs


def test_figures_are_those_of_structure_matcher_called_directly(disturbed):
    matcher = StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3)
    expected = [matcher.get_rms_dist(*pair) for pair in disturbed]
    result = match_rate([pair[0] for pair in disturbed], [pair[1] for pair in disturbed])
    assert [math.inf if rms is None else rms for rms in result.best_rms] == pytest.approx(
        [math.inf if found is None else found[0] for found in expected], rel=1e-9, abs=1e-9
    )
    matched = [found[0] for found in expected if found is not None]
    assert 0 < len(matched) < len(expected)
    assert result.num_matched == len(matched)
    assert result.match_rate == len(matched) / len(expected)
    assert result.rmse == pytest.approx(np.mean(matched))
    assert result.crmse == pytest.approx((sum(matched) + 0.5 * (len(expected) - len(matched))) / len(expected))
    assert (result.settings, result.n, result.validity_filter) == (DIFFCSP_MATCHER, 1, "none")
    assert "diffcsp-match: n=1, StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10.0)" in result.protocol


def test_displacement_worked_by_hand():
    # The second atom is 0.08 * 4 Å = 0.32 Å off. The best common shift leaves ± 0.16 Å on either atom, so the RMS is
    # 0.16 Å over (64 Å³ / 2)^(1/3).
    result = match_rate([chain(0.08)], [chain(0.0)])
    assert result.rmse == pytest.approx(0.16 / 32 ** (1 / 3), rel=1e-6)
    assert result.match_rate == 1.0


def test_one_match_among_the_samples_is_enough_and_the_smallest_counts():
    samples = [[chain(0.1), chain(0.02), chain(0.05)], [chain(), chain(), chain()]]
    references = [chain(), rocksalt(first="Cs")]
    unit = 4.0 / 2 / 32 ** (1 / 3)
    result = match_rate(samples, references)
    assert result.best_rms[0] == pytest.approx(0.02 * unit, rel=1e-5)
    assert (result.n, result.match_rate, result.num_items, result.num_samples) == (3, 0.5, 2, 6)
    assert result.rmse == pytest.approx(0.02 * unit, rel=1e-5)
    first = result.at(1)
    assert first.best_rms[0] == pytest.approx(0.1 * unit, rel=1e-5)
    assert first == match_rate(samples, references, n=1)
    assert first.num_samples == 2
    for wrong in (0, 4):
        with pytest.raises(ValueError, match="1 to 3"):
            result.at(wrong)


def test_errors_and_missing_samples_stay_in_the_denominator():
    predictions = [
        rocksalt(),
        Decoded(None, ValueError("no such Wyckoff position")),
        Decoded(rocksalt()),
        None,
        [],
        "no crystal at all\n",
    ]
    result = match_rate(predictions, [rocksalt()] * 6)
    assert result.counts == {"matched": 2, "unreadable": 3}
    assert (result.num_items, result.num_samples, result.match_rate) == (6, 5, 2 / 6)
    assert result.samples[1][0].reason == "no such Wyckoff position"
    assert result.samples[4] == ()
    nothing = match_rate([[]], [rocksalt()])
    assert (nothing.match_rate, nothing.crmse) == (0.0, 0.5)
    assert math.isnan(nothing.rmse)
    assert nothing.to_dict()["rmse"] is None
    json.dumps(result.to_dict())


def test_all_accepted_forms_give_the_same(tmp_path):
    structure = rocksalt()
    path = tmp_path / "salt.cif"
    structure.to(filename=str(path))
    forms = [structure, as_columns(structure), str(path), path.read_text(), Decoded(structure)]
    result = match_rate(forms, [record_to_structure(as_columns(structure))] * len(forms))
    assert result.match_rate == 1.0
    assert result.rmse < 1e-3


def test_oxidation_states_do_not_matter():
    charged = rocksalt()
    charged.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    assert match_rate([charged], [rocksalt()]).match_rate == 1.0


def test_prefilter_changes_no_figure(data_dir):
    import pandas as pd

    columns = ["lattice", "frac_coords", "atomic_numbers"]
    rows = pd.read_parquet(data_dir / "mp_20.parquet", columns=columns).head(120).to_dict("records")
    structures = [record_to_structure(row) for row in rows if len(row["atomic_numbers"]) <= 8][:24]
    # neighbors in the table as predictions: mostly other compositions; and the crystals themselves, disturbed
    predictions = [[structures[index - 1], structures[index].copy().perturb(0.1)] for index in range(len(structures))]
    fast, plain = (match_rate(predictions, structures, prefilter=prefilter) for prefilter in (True, False))
    assert fast.best_rms == plain.best_rms
    assert (fast.match_rate, fast.rmse, fast.crmse) == (plain.match_rate, plain.rmse, plain.crmse)
    assert fast.match_rate > 0.9
    assert fast.counts["other_composition"] > 10
    assert "other_composition" not in plain.counts


def test_prefilter_compares_reduced_formulas():
    # the doubled cell has another formula but the same reduced one
    assert match_rate([rocksalt() * (2, 1, 1)], [rocksalt()]).match_rate == 1.0
    assert match_rate([rocksalt(first="K")], [rocksalt()]).counts == {"other_composition": 1}


@pytest.mark.parametrize("filter_references", [False, True])
def test_validity_filter_is_applied_and_reported(filter_references):
    close = chain(-0.4)  # 0.1 * 4 = 0.4 Å from an image of Cs along z, but 2.83 Å across
    collapsed = cesium_chloride(a=0.45)
    arguments = {"filter_references": filter_references}
    plain = match_rate([collapsed, chain(), close], [collapsed, chain(), close], **arguments)
    assert plain.num_matched == 3
    result = match_rate(
        [collapsed, chain(), close], [collapsed, chain(), close], validity_filter="structure", **arguments
    )
    assert [item[0].outcome for item in result.samples] == ["invalid", "matched", "matched"]
    assert "structure validity" in result.protocol
    assert (
        filter_matches(plain, [collapsed, chain(), close], [collapsed, chain(), close], "structure", **arguments)
        == result
    )
    reference_only = match_rate([cesium_chloride()], [collapsed], validity_filter="structure", **arguments)
    assert reference_only.counts == {"invalid_reference" if filter_references else "matched": 1}
    with pytest.raises(ValueError, match="validity_filter 'structure' already"):
        filter_matches(result, [collapsed, chain(), close], [collapsed, chain(), close])


def test_filter_of_a_result_is_that_of_matching_anew():
    collapsed = cesium_chloride(a=0.45)
    predictions = [
        [collapsed, cesium_chloride(), "no file"],
        [cesium_chloride()],
        [],
        [rocksalt(), rocksalt(first="K")],
    ]
    references = [cesium_chloride(), collapsed, rocksalt(), rocksalt()]
    options = {"validity_filter": "structure", "filter_references": True}
    for n in (1, 2, 3):
        filtered = filter_matches(match_rate(predictions, references, n=n), predictions, references, "structure")
        anew = match_rate(predictions, references, n=n, **options)
        # an invalid crystal of another composition is told as invalid by both
        assert filtered.to_dict() == anew.to_dict()
    with pytest.raises(ValueError, match="other numbers of crystals"):
        filter_matches(match_rate(predictions, references), predictions[::-1], references[::-1], "structure")


def test_one_bad_pair_is_counted_and_the_rest_go_on(monkeypatch):
    monkeypatch.setattr(matching, "rms_distances", misbehaving_pairs)
    salts = [rocksalt(first=first) for first in ("Na", "K", "Rb", "Li", "Na")]
    result = match_rate(salts, salts, num_workers=2, time_limit=3.0)
    outcomes = [item[0].outcome for item in result.samples]
    assert outcomes == ["matched", "crash", "timeout", "error", "matched"]
    assert result.counts == {"matched": 2, "crash": 1, "timeout": 1, "error": 1}
    assert (result.match_rate, result.num_items) == (2 / 5, 5)
    everyone = metre(salts[1:2] + salts[3:], salts[:2], num_workers=1)
    assert (everyone.metre, everyone.counts) == (1 / 2, {"matched": 1, "crash": 1})


def test_processes_give_the_same_as_none(disturbed):
    predictions, references = zip(*disturbed[:12], strict=True)
    assert match_rate(predictions, references, num_workers=2) == match_rate(predictions, references)


def test_metre_worked_by_hand():
    unit = 4.0 / 2 / 32 ** (1 / 3)
    references = [chain(), cesium_chloride(), rocksalt(first="K")]
    # made for other references than those they match; a dropped error would change num_generated
    generated = [cesium_chloride(), chain(0.06), chain(0.03), Decoded(None, ValueError("no crystal"))]
    result = metre(generated, references)
    assert result.best_index == (2, 0, None)
    assert result.best_rms[0] == pytest.approx(0.03 * unit, rel=1e-5)
    assert result.metre == 2 / 3
    assert result.crmse == pytest.approx((0.03 * unit + 0.0 + 0.5) / 3, rel=1e-5)
    assert result.rmse == pytest.approx(0.03 * unit / 2, rel=1e-5)
    assert (result.num_generated, result.num_usable, result.num_references) == (4, 3, 3)
    # by position only the second pair could match, and it does not
    assert match_rate(generated[:3], references).num_matched == 0
    plain = metre(generated, references, prefilter=False)
    assert (plain.best_rms, plain.best_index) == (result.best_rms, result.best_index)


def test_duplicates_raise_the_match_rate_but_not_metre():
    polymorphs = [rocksalt(), cesium_chloride()]
    one_for_all = [rocksalt(), rocksalt()]
    assert metre(one_for_all, polymorphs).metre == 0.5
    assert metre([*one_for_all, *one_for_all], polymorphs).metre == 0.5
    assert metre(polymorphs[::-1], polymorphs).metre == 1.0
    assert match_rate(polymorphs[::-1], polymorphs).match_rate == 0.0


def test_strict_settings_can_be_asked_for():
    strict = MatcherSettings(ltol=0.01, stol=0.02, angle_tol=0.5)
    assert match_rate([chain(0.1)], [chain()], settings=strict).match_rate == 0.0
    assert match_rate([chain(0.1)], [chain()], settings=DEFAULT_MATCHER).match_rate == 1.0


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        match_rate([chain(), chain()], [chain()])
    with pytest.raises(ValueError, match="references is empty"):
        match_rate([], [])
    with pytest.raises(ValueError, match="n is 0"):
        match_rate([chain()], [chain()], n=0)
    with pytest.raises(ValueError, match="validity_filter is 'both'"):
        match_rate([chain()], [chain()], validity_filter="both")
    with pytest.raises(CrystalInputError, match="crystal 1"):
        metre([chain()], [chain(), Decoded(None, ValueError("broken"))])
