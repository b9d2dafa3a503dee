import numpy as np
import pytest
from crystals_for_metrics import Canonical, Decoded, cesium_chloride, chain, misbehaving_pairs, rocksalt
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from hf_crystal.evaluation import generation, match_rate, novelty, space_group_agreement, uniqueness, validity
from hf_crystal.evaluation.results import find_space_group, read_crystal
from hf_crystal.evaluation.structure_matching.matching import DEFAULT_MATCHER

BROKEN = Decoded(None, ValueError("dead end"))


def off_center(shift: float = 0.05) -> Structure:
    """Tetragonal for `find_space_group`, and yet cubic CsCl for the matcher's tolerance."""
    return chain(shift)


def described_anew(structure: Structure) -> Structure:
    other = structure * (2, 1, 1)
    other.translate_sites(range(len(other)), [0.1, 0.2, 0.3])
    return other


def test_uniqueness_worked_by_hand():
    crystals = [rocksalt(), cesium_chloride(), described_anew(rocksalt()), BROKEN, rocksalt(first="K"), rocksalt()]
    result = uniqueness(crystals)
    assert result.representative == (0, 1, 0, None, 4, 0)
    assert (result.num_crystals, result.num_unreadable, result.num_unique) == (6, 1, 3)
    assert result.uniqueness == 3 / 6
    # rock salt against two copies; the others are alone in their bucket
    assert (result.num_pairs, result.failures) == (2, {})
    assert "StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5.0)" in result.protocol
    assert "symprec=0.1" in result.protocol


def test_groups_by_formula_are_those_of_pymatgen():
    generator = np.random.default_rng(11)
    crystals = []
    for structure in (rocksalt(), cesium_chloride(), chain(), off_center(), rocksalt(first="K")):
        crystals += [structure, structure.copy().perturb(0.05), described_anew(structure).perturb(0.4)]
    crystals = [crystals[index] for index in generator.permutation(len(crystals))]
    result = uniqueness(crystals, bucket_by="formula")
    groups = StructureMatcher().group_structures(crystals)
    expected = {frozenset(next(i for i, c in enumerate(crystals) if c is member) for member in g) for g in groups}
    found = {}
    for index, first in enumerate(result.representative):
        found.setdefault(first, set()).add(index)
    assert {frozenset(group) for group in found.values()} == expected
    assert 5 <= result.num_unique == len(groups) < len(crystals)
    assert "symprec" not in result.protocol


def test_space_groups_part_what_the_matcher_calls_equal():
    polar, cubic = off_center(), chain()
    assert StructureMatcher().fit(cubic, polar)
    assert (find_space_group(cubic, 0.1), find_space_group(polar, 0.1)) == (221, 99)
    assert uniqueness([cubic, polar]).num_unique == 2
    assert uniqueness([cubic, polar], bucket_by="formula").num_unique == 1
    assert novelty([polar], [cubic]).novelty == 1.0
    assert novelty([polar], [cubic], bucket_by="formula").match == (0,)


def test_novelty_worked_by_hand():
    known = [rocksalt(first="K"), cesium_chloride(), rocksalt(), rocksalt()]
    generated = [described_anew(rocksalt()), chain(), BROKEN, cesium_chloride(3.6)]
    result = novelty(generated, known)
    assert result.match == (2, None, None, 1)  # the matcher scales volumes, so 3.6 Å is no new crystal
    assert (result.num_novel, result.num_unreadable, result.num_crystals, result.num_references) == (1, 1, 4, 4)
    assert result.novelty == 1 / 4
    assert result.num_pairs == 3


def test_processes_give_the_same_as_none():
    crystals = [rocksalt(), described_anew(rocksalt()), chain(), chain(), cesium_chloride()]
    assert uniqueness(crystals, num_workers=1, time_limit=60.0) == uniqueness(crystals)


def test_a_bad_pair_counts_as_different_and_is_reported(monkeypatch):
    def same(settings, pairs):
        return [rms is not None for rms in misbehaving_pairs(settings, pairs)]

    monkeypatch.setattr(generation, "fits", same)
    salts = [rocksalt(first="Li"), rocksalt(), rocksalt(first="Li"), rocksalt()]
    result = uniqueness(salts)
    assert (result.representative, result.failures) == ((0, 1, 2, 1), {"error": 1})
    known = novelty(salts, salts[:2])
    assert (known.match, known.failures) == ((None, 1, None, 1), {"error": 2})


def test_space_group_agreement_worked_by_hand():
    crystals = [rocksalt(), cesium_chloride(), off_center(), BROKEN]
    result = space_group_agreement(crystals, [225, "Pm-3m", 221, 1])
    assert result.found == (225, 221, 99, None)
    assert result.expected == (225, 221, 221, 1)
    assert (result.agreement, result.num_agreeing, result.num_unreadable, result.num_not_found) == (2 / 4, 2, 1, 0)
    # with a tolerance as wide as the displacement (0.2 Å, ± 0.1 Å on either atom) it is cubic
    assert space_group_agreement(crystals, [225, 221, 221, 1], symprec=0.3).num_agreeing == 3


def test_space_groups_are_compared_with_what_the_sequence_says():
    crystals = [Decoded(rocksalt(), None, Canonical(225)), Decoded(off_center(), None, Canonical(221)), BROKEN]
    result = space_group_agreement(crystals)
    assert (result.expected, result.found) == ((225, 221, None), (225, 99, None))
    assert result.agreement == 1 / 3
    with pytest.raises(ValueError, match="crystal 0 has no"):
        space_group_agreement([rocksalt()])


def test_a_crystal_without_space_group_is_counted():
    collapsed = Structure(Lattice.cubic(4.0), ["Na", "Na"], [[0, 0, 0], [0, 0, 0]])  # moyopy finds no group for it
    assert read_crystal(collapsed).error is None
    result = space_group_agreement([collapsed, chain()], [1, 221])
    assert (result.found, result.num_agreeing, result.num_not_found) == ((None, 221), 1, 1)


def test_decoded_sequences_are_judged_as_they_come():
    from hf_crystal.mat2seq.tokenization_mat2seq import Mat2SeqTokenizer

    tokenizer = Mat2SeqTokenizer()
    ids = tokenizer([rocksalt(), off_center()])["input_ids"]
    decoded = tokenizer.batch_decode_structures([*ids, ids[0][:5]])
    result = space_group_agreement(decoded)
    assert (result.expected, result.found) == ((225, 99, None), (225, 99, None))
    assert (result.agreement, result.num_unreadable) == (2 / 3, 1)
    assert match_rate(decoded, [rocksalt(), off_center(), rocksalt()]).counts == {"matched": 2, "unreadable": 1}
    assert validity(decoded, composition=None).valid == 2 / 3
    assert uniqueness(decoded).num_unique == 2
    assert novelty(decoded, [rocksalt()]).num_novel == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: uniqueness([]), "crystals is empty"),
        (lambda: uniqueness([chain()], bucket_by="space_group"), "bucket_by is 'space_group'"),
        (lambda: novelty([], [chain()]), "crystals is empty"),
        (lambda: novelty([chain()], []), "references is empty"),
        (lambda: space_group_agreement([chain()], [221, 1]), "2 expected space groups for 1 crystals"),
        (lambda: space_group_agreement([chain()], [231]), "231"),
        (lambda: space_group_agreement([]), "crystals is empty"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_default_matcher_is_that_of_pymatgen():
    plain = StructureMatcher()
    assert (plain.ltol, plain.stol, plain.angle_tol) == (
        DEFAULT_MATCHER.ltol,
        DEFAULT_MATCHER.stol,
        DEFAULT_MATCHER.angle_tol,
    )
