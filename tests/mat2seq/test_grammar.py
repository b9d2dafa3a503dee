"""The grammar: no dead ends, nothing but crystals; the fast mask rows say the same as the plain automaton."""

import random
from collections import Counter
from importlib import import_module

import pytest
import torch
from mat2seq_crystals import DATASETS, baddeleyite, lopsided, perovskite, quartz, read_records, rock_salt, rutile

from hf_crystal.mat2seq.canonical_crystal import CanonicalSite, coordinate_strides, orbit_points
from hf_crystal.mat2seq.canonicalize import canonicalize
from hf_crystal.mat2seq.grammar import CrystalGrammar, GrammarState
from hf_crystal.mat2seq.grammar_constraint import PromptConstraint
from hf_crystal.mat2seq.grammar_feasibility import (
    can_finish,
    collapsing_values,
    equivalent_parameters,
    values_with_smaller_spelling,
)
from hf_crystal.mat2seq.logits_processor import CrystalLogitsProcessor, PlainCrystalLogitsProcessor
from hf_crystal.mat2seq.sequence_text import parse_tokens, write_tokens
from hf_crystal.mat2seq.space_groups import space_group

CRYSTALS = [quartz, rutile, rock_salt, perovskite, baddeleyite, lopsided]


@pytest.fixture(scope="module")
def grammar(tokenizer):
    return CrystalGrammar(tokenizer, max_atoms=20, max_tokens=400)


def walk(grammar, constraint, source):
    """Tokens of a random walk through the grammar."""
    state, tokens = GrammarState(), []
    while not tokens or tokens[-1] != grammar.eos_token:
        allowed = grammar.allowed_tokens(state, constraint)
        assert allowed, (tokens, state)
        tokens.append(source.choice(allowed))
        state = grammar.advance(state, tokens[-1], constraint)
    return tokens


@pytest.mark.slow
def test_random_walks_end_in_crystals_in_every_space_group(grammar):
    source = random.Random(0)
    for number in range(1, 231):
        constraint = PromptConstraint.build(None, [number])
        grammar.check(constraint)
        tokens = walk(grammar, constraint, source)
        crystal = parse_tokens(tokens[:-1], grammar.layout)
        assert crystal.space_group == number
        assert len(tokens) + 1 <= grammar.max_tokens


@pytest.mark.parametrize("composition", [{38: 1, 22: 1, 8: 3}, {14: 6, 8: 12}, {6: 20}, {1: 1}])
def test_random_walks_keep_the_composition(grammar, composition):
    source = random.Random(1)
    constraint = PromptConstraint.build([composition])
    for _ in range(25):
        tokens = walk(grammar, constraint, source)
        crystal = parse_tokens(tokens[:-1], grammar.layout)
        assert crystal.composition == composition
        assert Counter(crystal.to_record()["atomic_numbers"].tolist()) == composition


@pytest.mark.parametrize("number", [2, 14, 62, 136])
def test_orbits_are_written_by_their_smallest_parameters(grammar, number):
    source = random.Random(number)
    for _ in range(15):
        tokens = walk(grammar, PromptConstraint.build(None, [number]), source)
        for site in parse_tokens(tokens[:-1], grammar.layout).sites:
            if site.parameters:
                images = equivalent_parameters(number, site.position, site.parameters, grammar.steps)
                assert min(images) == site.parameters


@pytest.mark.parametrize("make", CRYSTALS)
def test_canonical_sequences_are_in_the_grammar(grammar, make):
    state, constraint = GrammarState(), PromptConstraint()
    for token in [*write_tokens(canonicalize(make())), grammar.eos_token]:
        assert token in grammar.allowed_tokens(state, constraint)
        state = grammar.advance(state, token, constraint)
    assert state.phase == "end"


@pytest.mark.parametrize(("name", "split"), DATASETS)
def test_real_crystals_are_in_the_grammar(tokenizer, data_dir, name, split):
    wide = CrystalGrammar(tokenizer, max_atoms=512, max_tokens=6000, length_range=(1.0, 199.0))
    for record in read_records(data_dir, name, split, 10, seed=11):
        state = GrammarState()
        for token in [*write_tokens(canonicalize(record)), wide.eos_token]:
            assert token in wide.allowed_tokens(state, PromptConstraint())
            state = wide.advance(state, token, PromptConstraint())


def test_counts_that_do_not_add_up_are_seen():
    assert can_finish(225, ((11, 1), (17, 1)), None)
    assert can_finish(225, ((11, 1), (17, 1), (19, 2)), None)
    assert not can_finish(225, ((11, 1), (17, 1), (19, 1)), None)  # 4a and 4b are taken
    assert not can_finish(225, ((11, 1),), (1, 17))  # after 4b only larger positions come
    assert can_finish(1, tuple((z, 3) for z in range(1, 60)), None)
    assert not can_finish(14, ((8, 1),), None)  # P2_1/c: 2 or 4


def test_values_that_collapse_an_orbit_are_seen():
    forbidden = set(collapsing_values(136, space_group(136).letters["f"].index, (), 2000).nonzero()[0].tolist())
    assert forbidden == {0, 1000}  # 4f x,x,0 passes through 2a at 0 and 2a again at 1/2


def test_equivalent_parameters_hold_the_mirror_partner():
    assert equivalent_parameters(136, space_group(136).letters["f"].index, (611,), 2000) == {(611,), (1389,)}


@pytest.mark.parametrize("number", [2, 14, 47, 76, 136, 166, 194, 227])
def test_values_of_coordinates_are_judged_as_the_orbits_say(number):
    """The last free coordinate, against every orbit written out."""
    source, steps = random.Random(number), 600
    for position in space_group(number).positions:
        place = position.num_parameters - 1
        if place < 0:
            continue
        special = [source.choice((0, 150, 300, source.randrange(steps))) for _ in range(place)]
        for earlier in (tuple(special), tuple(source.randrange(steps) for _ in range(place))):
            heads = [earlier[:i] for i in range(place)]
            if any(collapsing_values(number, position.index, h, steps)[earlier[len(h)]] for h in heads):
                continue
            collapsing = collapsing_values(number, position.index, earlier, steps)
            smaller = values_with_smaller_spelling(number, position.index, earlier, steps)
            for value in (0, 75, 150, 200, 299, 300, 301, 450, *source.sample(range(steps), 12)):
                whole = (*earlier, value)
                orbit = orbit_points(space_group(number), position, whole, steps)
                assert collapsing[value] == (len(orbit) < position.multiplicity)
                if not collapsing[value]:
                    images = equivalent_parameters(number, position.index, whole, steps)
                    assert smaller[value] == (min(images) < whole)


CONSTRAINTS = [
    PromptConstraint(),
    PromptConstraint.build([{38: 1, 22: 1, 8: 3}]),
    PromptConstraint.build([{22: 2, 8: 4}, {22: 4, 8: 8}], [2, 14, 62, 136]),
    PromptConstraint.build(None, [225, 166], [3, 8, 26], [3, 8]),
    PromptConstraint.build(None, range(75, 195)),
    PromptConstraint.build([{8: 8, 14: 4}], [2], cell=[("alpha", 900, 900), ("a", 450, 500)]),
    PromptConstraint.build(
        [{22: 2, 8: 8}], [136], sites=[CanonicalSite(0, 22, ()), CanonicalSite(5, 8, ()), CanonicalSite(5, 8, (611,))]
    ),
]


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=range(len(CONSTRAINTS)))
def test_mask_rows_equal_the_plain_grammar(tokenizer, grammar, constraint):
    rows, source = 3, torch.Generator().manual_seed(0)
    fast = CrystalLogitsProcessor(tokenizer, grammar, constraint)
    plain = PlainCrystalLogitsProcessor(tokenizer, grammar, [constraint] * rows)
    ids = torch.full((rows, 1), tokenizer.bos_token_id)
    scores = torch.randn(rows, len(tokenizer), generator=source)
    while not (ids == tokenizer.eos_token_id).any(dim=1).all():
        got = fast(ids, scores)
        assert torch.equal(got, plain(ids, scores))
        following = torch.multinomial((got > -torch.inf).double(), 1, generator=source)
        ids = torch.cat([ids, following], dim=1)
    for row, item in zip(ids, tokenizer.batch_decode_structures(ids), strict=True):
        assert item.error is None, tokenizer.decode(row)


def test_mask_rows_follow_rows_that_change_places(tokenizer, grammar):
    constraints = [PromptConstraint.build([{30: 1, 16: 1}]), PromptConstraint.build([{6: 2}])]
    fast = CrystalLogitsProcessor(tokenizer, grammar, constraints)
    plain = PlainCrystalLogitsProcessor(tokenizer, grammar, [c for c in constraints for _ in range(2)])
    texts = ["Zn 1 S 1 | F-43m | a 5.41", "Zn 1 S 1 | P3m1", "C 2 | Fd-3m | a 3.56", "C 2 | P-1 | a"]
    rows = [tokenizer.encode(text) for text in texts]
    for order in ((0, 1, 2, 3), (1, 0, 2, 3), (1, 1, 3, 2)):
        width = max(len(rows[i]) for i in order)
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(rows[i])) + rows[i] for i in order])
        scores = torch.zeros(4, len(tokenizer))
        assert torch.equal(fast(ids, scores), plain(ids, scores))


def test_a_token_that_is_not_allowed_is_refused(tokenizer, grammar):
    ids = torch.tensor([tokenizer.encode("C 2 | Fd-3m | b")])
    with pytest.raises(ValueError, match="not allowed"):
        CrystalLogitsProcessor(tokenizer, grammar)(ids, torch.zeros(1, len(tokenizer)))


@pytest.mark.parametrize("digits", [1, 3])
def test_other_groups_of_digits(digits):
    from hf_crystal.mat2seq.tokenization_mat2seq import Mat2SeqTokenizer

    other = Mat2SeqTokenizer(digits_per_token=digits)
    grammar = CrystalGrammar(other, max_tokens=400)
    fast, ids = CrystalLogitsProcessor(other, grammar), torch.full((2, 1), other.bos_token_id)
    plain = PlainCrystalLogitsProcessor(other, grammar, [PromptConstraint()] * 2)
    source = torch.Generator().manual_seed(1)
    while not (ids == other.eos_token_id).any(dim=1).all():
        mask = fast(ids, torch.zeros(2, len(other)))
        assert torch.equal(mask, plain(ids, torch.zeros(2, len(other))))
        ids = torch.cat([ids, torch.multinomial(mask.exp(), 1, generator=source)], dim=1)
    assert [item.error for item in other.batch_decode_structures(ids)] == [None, None]


def test_coordinates_are_multiples_of_the_stride_of_the_cell(grammar):
    source = random.Random(5)
    for number in (14, 136, 166):
        crystal = parse_tokens(walk(grammar, PromptConstraint.build(None, [number]), source)[:-1], grammar.layout)
        strides = coordinate_strides(number, crystal.lattice, crystal.settings)
        for site in crystal.sites:
            assert not any(
                value % stride for value, stride in zip(site.parameters, strides[site.position], strict=False)
            )


def test_sites_and_cell_asked_for_occur(grammar):
    source = random.Random(3)
    sites = [CanonicalSite(5, 8, (611,)), CanonicalSite(1, 22, ())]
    constraint = PromptConstraint.build([{22: 4, 8: 8}], [136], cell=[("c", 290, 294)], sites=sites)
    grammar.check(constraint)
    for _ in range(20):
        crystal = parse_tokens(walk(grammar, constraint, source)[:-1], grammar.layout)
        assert set(sites) <= set(crystal.sites)
        assert 290 <= crystal.lattice[1] <= 294


@pytest.mark.parametrize(
    "options", [{"max_tokens": 20}, {"length_range": (5, 2)}, {"angle_range": (80, 100)}], ids=lambda o: next(iter(o))
)
def test_bounds_that_leave_no_crystal_are_refused(tokenizer, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        CrystalGrammar(tokenizer, **options)


def test_what_is_remembered_between_crystals_is_bounded():
    modules = [import_module(f"hf_crystal.mat2seq.{name}") for name in ("grammar", "grammar_feasibility", "validity")]
    caches = {value for module in modules for value in vars(module).values() if hasattr(value, "cache_info")}
    sizes = {cache.__name__: cache.cache_info().maxsize for cache in caches}
    # tables of the space groups, of which there are 230, need no bound
    tables = {"primitive_multiplicities", "reachable", "_relations", "_parameter_images", "_spellings", "space_group"}
    tables |= {"_numbers", "_position_indices", "load_smact", "space_group_symbols", "free_cell_parameters"}
    tables |= {"position_token"}
    assert {name for name, size in sizes.items() if size is None} <= tables
    for count in range(30_000):
        can_finish(225, ((11, count),), (0, 1))
    assert can_finish.cache_info().currsize <= 20_000
