"""The grammar: no dead ends, nothing but crystals, exactly what was asked for; the language model around it."""

import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest
import torch
from mat2seq_crystals import rutile
from transformers import LogitsProcessorList

from hf_crystal.mat2seq.grammar import CrystalGrammar
from hf_crystal.mat2seq.logits_processor import PlainCrystalLogitsProcessor
from hf_crystal.mat2seq.modeling_mat2seq import (
    MAT2SEQ_SIZES,
    CrystalLogitsProcessor,
    CrystalPrompt,
    Mat2SeqForCausalLM,
    generate_crystals,
    generate_crystals_for_prompts,
    mat2seq_config,
    parse_composition,
)
from hf_crystal.mat2seq.prompts import prepare_prompt
from hf_crystal.mat2seq.space_groups import space_group
from hf_crystal.mat2seq.tokenization_mat2seq import Mat2SeqTokenizer
from hf_crystal.mat2seq.validity import atoms_collide

RUTILE = "Ti 2 O 4 | P4_2/mnm | a 4.59 c 2.96 | Ti 2a"


@pytest.fixture(scope="module")
def grammar(tokenizer):
    return CrystalGrammar(tokenizer, max_atoms=20, max_tokens=400)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return Mat2SeqForCausalLM(mat2seq_config("tiny", tokenizer, max_position_embeddings=400)).eval()


def test_impossible_prompts_are_refused(tokenizer, model, grammar):
    for options, reason in [
        ({"composition": "NaKCl", "space_group": 225}, "multiplicities"),
        ({"composition": "NaCl", "space_group": 231}, "space_group"),
        ({"composition": "Xx2"}, "Xx"),
        ({"composition": {"Na": 0.5}}, "whole numbers of atoms, such as Na"),
        ({"composition": "Li5.5PS4.5Cl1.5"}, "whole numbers of atoms, such as Li11P2S9Cl3"),
        ({"composition": {}}, "empty"),
        ({"composition": {"C": 900}}, "900 atoms; accepted: up to 512"),
        ({"chemical_system": "Na-Qq"}, "Qq"),
        ({"composition": "NaCl", "chemical_system": "Na-Cl"}, "exclude"),
        ({"formula_units": [1]}, "composition"),
        ({"prompt": "Ti 2 O 4 | Pm-3m | Ti"}, "prompt token"),
        ({"prompt": "Ti 2 O 4 |", "space_group": 136}, "excludes"),
        ({"properties": {"hardness": 1}}, "hardness"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"num_return": 0}, "num_return is 0; accepted: at least 1"),
        ({"num_return": 0}, "num_return"),
        ({"num_beams": 2, "num_return": 3}, "num_beams"),
        ({"composition": 7}, "formula or a mapping"),
        ({"composition": {"C": 300}, "space_group": 1}, "C 300 in P1 may need .* tokens; accepted: up to 396"),
        ({"composition": "NaCl", "formula_units": 0}, "formula_units"),
        ({"composition": "TiO2", "cell": {"a": 4.6}}, "need one space_group"),
        ({"composition": "TiO2", "space_group": [1, 2], "sites": ["Ti 1a"]}, "need one space_group"),
        ({"space_group": 136, "sites": ["Ti 2a"]}, "sites need a composition"),
        ({"space_group": 136, "cell": {"b": 4.6}}, "free in P4_2/mnm: a, c"),
        ({"space_group": 136, "cell": {"a": 400}}, "400; accepted: 1.5 to 100"),
        ({"space_group": 2, "cell": {"alpha": 90}}, "three values"),
        ({"space_group": 2, "cell": {"alpha": 30, "beta": 30, "gamma": 90}}, "cannot exist"),
        ({"composition": "Ti2O4", "space_group": 136, "sites": ["Ti 3z"]}, "position of P4_2/mnm"),
        ({"composition": "Ti2O4", "space_group": 136, "sites": ["O 4f 0.1 0.2"]}, "2 coordinates; 4f has 1"),
        ({"composition": "Ti2O4", "space_group": 136, "sites": ["O 4f x"]}, "numbers"),
        ({"composition": "Ti2O4", "space_group": 136, "sites": ["O 4f 0.5"]}, "more special"),
        ({"composition": "Ti4O8", "space_group": 136, "sites": ["Ti 2a", "O 2a"]}, "occupied already"),
        ({"composition": "Ti2O4", "space_group": 136, "sites": ["Ti 4c"]}, "sites asked for"),
        ({"min_distance": -1}, "min_distance"),
        ({"min_distance": 50}, "up to 6 Å"),
        ({"on_error": "ignore"}, "on_error"),
    ]:
        with pytest.raises(ValueError, match=reason):
            model.generate_crystals(tokenizer, **options)


@pytest.mark.parametrize("temperature", [0.7, 1.5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"composition": "SrTiO3"},
        {"composition": "Sr2Ti2O6", "space_group": "P-1"},
        {"composition": "SrTiO3", "formula_units": [1, 2]},
        {"space_group": 227},
        {"chemical_system": "Li-Fe-O", "space_group": "Pnma"},
        {"prompt": "Ti 2 O 4 | P4_2/mnm | a 4.59 c 2.96 | Ti 2a"},
        {"properties": {"band_gap": 1.0}, "composition": "ZnO"},
        {"composition": "ZnO", "formula_units": "any", "space_group": 186},
    ],
    ids=str,
)
def test_an_untrained_model_writes_only_what_was_asked_for(tokenizer, model, options, temperature):
    made = model.generate_crystals(tokenizer, num_return=8, temperature=temperature, seed=0, **options)
    assert len(made) == 8
    for item in made:
        assert item.error is None
        assert item.log_likelihood < 0
        assert len(tokenizer.encode(item.sequence)) <= 400
        if "composition" in options:
            units = options.get("formula_units", [1])
            units = range(1, 21) if units == "any" else units
            wanted = parse_composition(options["composition"])
            assert item.canonical.composition in [{e: n * k for e, n in wanted.items()} for k in units]
        if "space_group" in options:
            assert options["space_group"] in (
                item.canonical.space_group,
                space_group(item.canonical.space_group).symbol,
            )
        if "chemical_system" in options:
            assert {str(e) for e in item.structure.composition} == set(options["chemical_system"].split("-"))
        if "prompt" in options:
            assert item.sequence.startswith(options["prompt"])


MIXED = [
    {"composition": "SrTiO3"},
    {"composition": "Zn2S2", "space_group": [186, 187]},
    {"chemical_system": "Li-O"},
    {"properties": {"band_gap": 1.0}},
    {},
]


def sequences(found):
    return [[item.sequence for item in items] for items in found]


@pytest.fixture(scope="module")
def trained():
    from hf_crystal.checkpoints import checkpoint_folder

    folder = checkpoint_folder("mat2seq-perov5")
    return Mat2SeqForCausalLM.from_pretrained(folder).eval(), Mat2SeqTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["untrained", "perov5"])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0}, {"temperature": 0.6, "top_p": 0.8}, {"guidance": 1.7}], ids=str
)
def test_a_seed_gives_the_same_crystals_in_every_batch_and_thread(tokenizer, model, trained, name, options):
    language_model, reader = (model, tokenizer) if name == "untrained" else trained

    def write(prompts, count, batch_size=256):
        return sequences(
            generate_crystals_for_prompts(
                language_model, reader, prompts, num_return=count, batch_size=batch_size, seed=11, **options
            )
        )

    together = write(MIXED, 3)
    assert write(MIXED[::-1], 3, batch_size=4)[::-1] == together
    assert write(MIXED, 2) == [items[:2] for items in together]
    with ThreadPoolExecutor(4) as pool:
        assert [found for (found,) in pool.map(lambda prompt: write([prompt], 3, batch_size=2), MIXED)] == together
    if options.get("temperature") != 0:
        assert len(set(together[-1])) > 1


def test_rounding_of_a_batch_decides_no_token(tokenizer, model, monkeypatch):
    """Errors of 0.01 on the logits of batches, and the sampler prepared for such errors: the same crystals."""
    from hf_crystal.mat2seq import sampler

    def write():
        options = {"num_return": 3, "seed": 2, "collisions": "keep"}
        return sequences(generate_crystals_for_prompts(model, tokenizer, MIXED[:3], **options))

    plain, exact, source = write(), sampler._Rows.logits, torch.Generator().manual_seed(0)

    def noisy(rows):
        logits = exact(rows)
        return logits + 0.02 * (torch.rand(logits.shape, generator=source) - 0.5)

    monkeypatch.setattr(sampler._Rows, "logits", noisy)
    assert write() != plain
    monkeypatch.setattr(sampler, "_ROUNDING", 0.02 / torch.finfo(torch.float32).eps)
    assert write() == plain


def test_calls_without_a_seed_differ_and_copies_of_a_prompt_too(tokenizer, model):
    prompt = {"composition": "GaN"}
    calls = [generate_crystals(model, tokenizer, num_return=2, **prompt) for _ in range(3)]
    assert len({item.sequence for items in calls for item in items}) > 1
    assert len({tuple(row) for row in sequences(calls)}) == 3
    copies = sequences(generate_crystals_for_prompts(model, tokenizer, [prompt] * 3, seed=4, num_return=2))
    assert len({tuple(row) for row in copies}) == 3


def test_seeds_reproduce_and_leave_the_global_state_alone(tokenizer, model):
    before = torch.random.get_rng_state()
    first, second, third = (
        model.generate_crystals(tokenizer, composition="ZnO", seed=s, num_return=3) for s in (5, 5, 6)
    )
    assert [item.sequence for item in first] == [item.sequence for item in second]
    assert [item.sequence for item in first] != [item.sequence for item in third]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_temperature_zero_is_greedy(tokenizer, model):
    made = model.generate_crystals(tokenizer, composition="ZnO", temperature=0, num_return=2)
    cold = model.generate_crystals(tokenizer, composition="ZnO", temperature=1e-300, num_return=2)
    assert [item.sequence for item in cold] == [item.sequence for item in made]
    assert made[0].sequence == made[1].sequence


def test_deuterium_is_hydrogen():
    assert parse_composition("D2O") == {1: 2, 8: 1}


def test_a_crystal_given_in_part_is_completed(tokenizer, model):
    made = model.generate_crystals(
        tokenizer,
        composition="TiO2",
        formula_units=2,
        space_group="P4_2/mnm",
        cell={"a": 4.594, "c": (2.9, 3.1)},
        sites=["O 4f 0.6945"],  # another spelling of 0.3055
        num_return=6,
        seed=0,
    )
    for item in made:
        assert " | a 4.59 c " in item.sequence
        assert "O 4f .3055" in item.sequence
        assert 2.9 <= item.canonical.cell_parameters["c"] <= 3.1
        assert item.canonical.composition == {22: 2, 8: 4}


def test_different_prompts_share_a_batch(tokenizer, model):
    prompts = [
        {"composition": "SrTiO3"},
        CrystalPrompt(composition="ZnO", formula_units=[1, 2], space_group=["P1", 2]),
        {"chemical_system": "Li-O", "space_group": 225},
        {"prompt": RUTILE, "properties": {"band_gap": 3.0}},
        {},
    ]
    found = generate_crystals_for_prompts(model, tokenizer, prompts, num_return=3, batch_size=7, seed=0)
    assert [len(items) for items in found] == [3] * 5
    assert all(item.error is None for items in found for item in items)
    assert {str(item.structure.composition.formula) for item in found[0]} == {"Sr1 Ti1 O3"}
    assert {item.canonical.space_group for item in found[1]} <= {1, 2}
    assert {item.structure.composition.chemical_system for item in found[2]} == {"Li-O"}
    assert all(f" {RUTILE}" in f" {item.sequence}" for item in found[3])


def test_log_likelihoods_are_those_of_the_model(tokenizer, model):
    """With prompts of different lengths in one batch, and prompts read once for several rows."""
    prompts = [{"composition": "SrTiO3"}, {"composition": "Zn", "space_group": 194, "formula_units": 2}]
    for options in ({}, {"num_beams": 2}):
        found = generate_crystals_for_prompts(model, tokenizer, prompts, num_return=2, seed=0, **options)
        for items, head in zip(found, ("Sr 1 Ti 1 O 3 |", "Zn 2 | P6_3/mmc |"), strict=True):
            known = len(tokenizer.encode(head))
            for item in items:
                ids = torch.tensor([tokenizer.encode(item.sequence)])
                with torch.no_grad():
                    scores = model(ids).logits[0, known - 1 : -1].log_softmax(-1)
                expected = scores.gather(1, ids[0, known:, None]).sum().item()
                assert item.log_likelihood == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("num_beams", [2, 3])
def test_beam_search_and_a_batch_of_different_prompts(tokenizer, model, num_beams):
    prompts = [{"composition": "Zn2S2"}, {"composition": "C4", "space_group": [1, 2, 12]}]
    found = generate_crystals_for_prompts(model, tokenizer, prompts, num_beams=num_beams, num_return=2, rank=True)
    assert [[item.canonical.composition for item in items] for items in found] == [[{30: 2, 16: 2}] * 2, [{6: 4}] * 2]
    for items in found:
        assert items[0].log_likelihood >= items[1].log_likelihood
        assert items[0].sequence != items[1].sequence


def test_a_bad_prompt_lets_the_others_go_on_where_that_is_wanted(tokenizer, model):
    prompts = [{"composition": "ZnO"}, {"composition": "NaKCl", "space_group": 225}, {"composition": "Xx"}]
    with pytest.raises(ValueError, match="prompt 1: no crystal of Na 1 K 1 Cl 1|prompt 1: no crystal of K 1 Na 1"):
        generate_crystals_for_prompts(model, tokenizer, prompts)
    found = generate_crystals_for_prompts(model, tokenizer, prompts, on_error="return", seed=0)
    assert [len(items) for items in found] == [1, 1, 1]
    assert [items[0].structure is None for items in found] == [False, True, True]
    assert "multiplicities" in str(found[1][0].error)


def test_crystals_that_filters_leave_out_are_replaced(tokenizer, model, monkeypatch):
    monkeypatch.setattr("hf_crystal.mat2seq.validity._LARGEST_DISTANCE", 60.0)  # no trained model writes such cells

    def nearest(item):
        return item.structure.get_neighbor_list(min(item.structure.lattice.abc) + 0.01)[3].min()

    options = {"composition": "NaCl", "seed": 0, "max_rounds": 30}
    plain = model.generate_crystals(tokenizer, num_return=8, **options)
    limit = sorted(map(nearest, plain))[4]
    apart = model.generate_crystals(tokenizer, num_return=8, min_distance=limit, **options)
    assert len(apart) == 8
    assert min(map(nearest, apart)) >= limit
    once = model.generate_crystals(
        tokenizer, composition="NaCl", seed=0, num_return=8, min_distance=limit, max_rounds=1
    )
    assert [item.sequence for item in once] == [item.sequence for item in plain if nearest(item) >= limit]


def test_colliding_crystals_are_replaced_or_named(tokenizer, model):
    options = {"composition": "Sr4O4", "seed": 3, "num_return": 12}
    plain = model.generate_crystals(tokenizer, collisions="keep", **options)
    assert any(map(atoms_collide, plain))
    assert all(item.warnings == () for item in plain)
    replaced = model.generate_crystals(tokenizer, **options)
    assert len(replaced) == 12
    assert [item.sequence for item in replaced if not item.warnings][:2] == [
        item.sequence for item in plain if not atoms_collide(item)
    ][:2]
    doubtful = ("two atoms are closer than half the sum of their covalent radii; no crystal without was drawn",)
    assert all(item.warnings == (doubtful if atoms_collide(item) else ()) for item in replaced)
    assert sum(map(atoms_collide, replaced)) < sum(map(atoms_collide, plain))
    once = model.generate_crystals(tokenizer, max_rounds=1, **options)
    assert sorted(item.sequence for item in once) == sorted(item.sequence for item in plain)
    places = [atoms_collide(item) for item in once]
    assert places == sorted(places)  # the doubtful ones are last
    with pytest.raises(ValueError, match="collisions is 'drop'; accepted: 'replace' or 'keep'"):
        model.generate_crystals(tokenizer, collisions="drop", **options)


def test_greedy_and_beams_that_filters_leave_out_are_replaced(tokenizer, model, monkeypatch):
    from hf_crystal.mat2seq import selection

    left_out: list = []
    monkeypatch.setattr(selection, "atoms_are_apart", lambda structure, _: structure not in left_out)
    options = {"composition": "KBr", "seed": 0, "min_distance": 0.5}
    reason = (
        "the crystals of greedy or beam search were left out by min_distance, smact, unseen or colliding atoms; this "
    )
    (greedy,) = model.generate_crystals(tokenizer, temperature=0, **options)
    first, second, third = model.generate_crystals(tokenizer, num_beams=3, num_return=3, **options)
    assert greedy.warnings == first.warnings == second.warnings == third.warnings == ()

    left_out.append(greedy.structure)
    redrawn = model.generate_crystals(tokenizer, temperature=0, num_return=2, unique=True, **options)
    assert len({item.sequence for item in redrawn} - {greedy.sequence}) == 2
    assert [item.warnings for item in redrawn] == [(f"{reason}one is sampled at temperature 1",)] * 2
    mixed = generate_crystals_for_prompts(
        model, tokenizer, [{"composition": "KBr"}, {"composition": "MgO"}], temperature=0, min_distance=0.5, seed=0
    )
    assert mixed[0][0].sequence == redrawn[0].sequence
    assert mixed[1][0].warnings == ()

    left_out[:] = [first.structure]
    (beam,) = model.generate_crystals(tokenizer, num_beams=3, **options)
    assert (beam.sequence, beam.warnings) == (second.sequence, (f"{reason}is one of the next beams",))
    left_out[:] = [second.structure]
    found = model.generate_crystals(tokenizer, num_beams=3, num_return=3, **options)
    assert [item.sequence for item in found] == [first.sequence, third.sequence]
    left_out[:] = [first.structure, second.structure, third.structure]
    (sampled,) = model.generate_crystals(tokenizer, num_beams=3, **options)
    assert sampled.warnings == (f"{reason}one is sampled at temperature 1",)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (-4.0, "band_gap is -4 eV; the trained bins reach from 0 to 8 eV"),
        (300, "band_gap is 300 eV; the trained bins reach from 0 to 8 eV"),
        (float("inf"), "band_gap is inf; accepted: a finite number"),
        (float("nan"), "band_gap is nan; accepted: a finite number"),
        ("1.5", "band_gap is '1.5'; accepted: a finite number"),
        (True, "band_gap is True; accepted: a finite number"),
    ],
)
def test_conditions_far_from_the_trained_range_are_refused(tokenizer, model, value, reason):
    with pytest.raises(ValueError, match=reason):
        model.generate_crystals(tokenizer, composition="ZnS", properties={"band_gap": value})


def test_conditions_beyond_the_last_bin_warn_with_the_range(tokenizer, model):
    properties = {"band_gap": 9.5, "formation_energy": -4.4}
    (item,) = model.generate_crystals(tokenizer, composition="LiF", properties=properties, seed=0)
    assert item.warnings == (
        "band_gap is 9.5 eV; the trained bins reach from 0 to 8 eV: the condition says no more than at least 8",
        "formation_energy is -4.4 eV/atom; the trained bins reach from -4 to 1 eV/atom: "
        "the condition says no more than below -4",
    )
    (item,) = model.generate_crystals(
        tokenizer, composition="LiF", properties={"band_gap": 0, "formation_energy": None}, seed=0
    )
    assert item.warnings == ()


def test_rank_is_by_likelihood_or_by_a_function(tokenizer, model):
    options = {"composition": "NaCl", "seed": 0, "num_return": 6}
    plain = model.generate_crystals(tokenizer, **options)
    ranked = model.generate_crystals(tokenizer, rank=True, **options)
    assert ranked == sorted(plain, key=lambda item: -item.log_likelihood)
    dense = model.generate_crystals(tokenizer, rank=lambda item: item.structure.density, **options)
    densities = [item.structure.density for item in dense]
    assert densities == sorted(densities, reverse=True)


def test_smact_filter_asks_smact(tokenizer, model, monkeypatch):
    from hf_crystal.mat2seq import validity as validity_crystal

    asked = []

    def smact_validity(composition, **options):
        asked.append((composition.reduced_formula, options))
        return composition["Na"] == composition["Cl"]

    screening = ModuleType("smact.screening")
    screening.smact_validity = smact_validity
    validity_crystal.smact_accepts.cache_clear()
    monkeypatch.setitem(sys.modules, "smact", ModuleType("smact"))
    monkeypatch.setitem(sys.modules, "smact.screening", screening)
    try:
        neutral = generate_crystals(model, tokenizer, composition="NaCl", smact=True, num_return=2, seed=0)
        charged = generate_crystals(model, tokenizer, composition="Na2Cl", smact=True, num_return=2, seed=0)
        heavy = generate_crystals(model, tokenizer, composition={"Rf": 1}, smact=True, seed=0)
    finally:
        validity_crystal.smact_accepts.cache_clear()
    assert len(neutral) == 2
    for refused, formula in ((charged, "Na2Cl"), (heavy, "Rf")):
        assert [item.structure for item in refused] == [None]
        assert f"no charge-neutral oxidation states for {formula}" in str(refused[0].error)
    rules = {"use_pauling_test": True, "include_alloys": True, "oxidation_states_set": "smact14"}
    assert asked == [("NaCl", rules), ("Na2Cl", rules)]


def test_smact_missing_is_told_before_sampling(tokenizer, model, monkeypatch):
    for module in ("smact", "smact.screening"):  # an earlier test may have imported the second
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="smact"):
        generate_crystals(model, tokenizer, composition="NaCl", smact=True)


def test_left_padded_prompts_are_read_past_the_padding(tokenizer, model, grammar):
    tokenizer_ids = [tokenizer.convert_tokens_to_ids(t.split()) for t in ("<bos> Zn 1 O 1 |", "<bos> C 2 |")]
    width = max(map(len, tokenizer_ids))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in tokenizer_ids])
    output = model.generate(
        input_ids=ids,
        attention_mask=(ids != tokenizer.pad_token_id).long(),
        logits_processor=[CrystalLogitsProcessor(tokenizer, grammar)],
        do_sample=True,
        max_length=400,
    )
    decoded = tokenizer.batch_decode_structures(output)
    assert [item.canonical.composition for item in decoded] == [{30: 1, 8: 1}, {6: 2}]


def test_the_saved_folder_is_a_stock_llama(tokenizer, model, tmp_path):
    import json

    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    stock = LlamaForCausalLM.from_pretrained(tmp_path)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(ours) is Mat2SeqForCausalLM
    ids = torch.tensor([tokenizer.encode(rutile())])
    assert torch.equal(stock.eval()(ids).logits, ours.eval()(ids).logits)
    assert torch.equal(model(ids).logits, ours(ids).logits)


def test_a_gpt2_generates_too(tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=400,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    made = generate_crystals(GPT2LMHeadModel(config).eval(), tokenizer, composition="GaAs", num_return=4, seed=0)
    assert [item.error for item in made] == [None] * 4
    assert all(item.canonical.composition == {31: 1, 33: 1} for item in made)


@pytest.mark.parametrize("size", MAT2SEQ_SIZES)
def test_named_sizes_have_the_vocabulary_of_the_tokenizer(tokenizer, size):
    config = mat2seq_config(size, tokenizer)
    assert config.vocab_size == len(tokenizer)
    assert config.hidden_size % config.num_attention_heads == 0


def test_an_unknown_size_is_refused(tokenizer):
    with pytest.raises(ValueError, match="huge"):
        mat2seq_config("huge", tokenizer)


def test_a_batch_writes_what_one_sequence_at_a_time_without_a_cache_does(tokenizer, model, grammar):
    """At temperature 0, with prompts read once for two rows each, and rows that leave the batch when they end."""
    asked = [{"composition": formula, "space_group": 221} for formula in ("Po", "CsCl", "SrTiO3", "Re1O3", "Cu3Au")]
    found = generate_crystals_for_prompts(model, tokenizer, asked, num_return=2, temperature=0, grammar=grammar)
    lengths = set()
    for fields, items in zip(asked, found, strict=True):
        prompt = prepare_prompt(CrystalPrompt(**fields), tokenizer, grammar)
        sequence = model.generate(
            input_ids=torch.tensor([prompt.ids]),
            attention_mask=torch.ones(1, len(prompt.ids), dtype=torch.long),
            logits_processor=LogitsProcessorList(
                [PlainCrystalLogitsProcessor(tokenizer, grammar, [prompt.constraint])]
            ),
            use_cache=False,
            do_sample=False,
            max_length=grammar.max_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )[0]
        lengths.add(len(sequence))
        assert [item.sequence for item in items] == [
            tokenizer.batch_decode_structures([sequence.tolist()])[0].sequence
        ] * 2
    assert len(lengths) > 1
