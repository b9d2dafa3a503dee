"""The tokenizer: encoding and decoding are inverse, every way of saving keeps it, wrong sequences say why."""

import pickle
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mat2seq_crystals import (
    DATASETS,
    baddeleyite,
    lopsided,
    perovskite,
    quartz,
    random_crystal,
    read_records,
    rock_salt,
    rutile,
)

from hf_crystal.crystals.elements import ELEMENT_ORDER
from hf_crystal.crystals.record import CHEMICAL_SYMBOLS, CrystalInputError
from hf_crystal.mat2seq.canonicalize import CanonicalSettings, canonicalize
from hf_crystal.mat2seq.sequence_text import (
    CoincidingAtomsError,
    CompositionMismatchError,
    ImpossibleLatticeError,
    MissingEndError,
    NumberFormat,
    RepeatedFixedPositionError,
    SequenceError,
    SequenceLayout,
    UnexpectedTokenError,
    UnknownPositionError,
    join_tokens,
    parse_tokens,
    split_text,
    write_tokens,
)
from hf_crystal.mat2seq.tokenization_mat2seq import Mat2SeqTokenizer, register_mat2seq_tokenizer
from hf_crystal.mat2seq.vocabulary import PropertyBins

CRYSTALS = [quartz, rutile, rock_salt, perovskite, baddeleyite, lopsided]
RUTILE = "Ti 2 O 4 | P4_2/mnm | a 4.59 c 2.96 | Ti 2a O 4f .3050"


@pytest.mark.parametrize("make", CRYSTALS)
def test_encoding_and_decoding_are_inverse(tokenizer, make):
    ids = tokenizer.encode(make())
    assert tokenizer.parse(ids) == canonicalize(make())
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
    assert tokenizer.encode(tokenizer.decode(ids, skip_special_tokens=False)) == ids
    assert tokenizer.encode(tokenizer.decode_structure(ids)) == ids
    assert tokenizer.unk_token_id not in ids


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("preset", ["fine", "default", "mid"])
def test_every_grid_and_token_size_round_trips(digits, preset):
    layout = SequenceLayout(CanonicalSettings.preset(preset), digits)
    generator = np.random.default_rng(0)
    for number in range(1, 231, 7):
        crystal = random_crystal(number, generator, layout.settings)
        crystal = canonicalize(crystal.to_record(), settings=layout.settings)
        tokens = write_tokens(crystal, digits)
        assert split_text(join_tokens(tokens), layout) == tokens
        assert parse_tokens(tokens, layout) == crystal


@given(steps=st.integers(0, 10**6), digits=st.integers(1, 3), step=st.sampled_from([0.001, 0.005, 0.0005, 0.05, 0.02]))
def test_numbers_are_read_as_written(steps, digits, step):
    form = NumberFormat.for_step(step, digits, whole=True)
    assert form.read(form.write(steps)) == steps
    assert len(form.write(steps)) == form.num_tokens


def test_a_grid_that_decimals_cannot_write_is_refused():
    with pytest.raises(ValueError, match="1/2000"):
        NumberFormat.for_step(1 / 3000, 2, whole=False)


def test_tokenizer_json_alone_reads_and_writes_text(tokenizer, tmp_path):
    from tokenizers import Tokenizer

    tokenizer.save_pretrained(tmp_path)
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for make in CRYSTALS:
        ids = tokenizer.encode(make())
        assert plain.encode(tokenizer.decode(ids)).ids == ids[:-1]  # text may be a prompt: no end
        assert plain.encode(tokenizer.decode(ids).replace(" | ", "|")).ids == ids[:-1]
        assert plain.decode(ids) == tokenizer.decode(ids)


def test_saved_and_pickled_tokenizers_are_the_same(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    odd = Mat2SeqTokenizer(
        fraction_steps=1000, digits_per_token=3, properties=[{"name": "t_c", "unit": "K", "edges": [1, 4]}]
    )
    register_mat2seq_tokenizer()
    for index, one in enumerate((tokenizer, odd)):
        folder = tmp_path / str(index)
        one.save_pretrained(folder)
        loaded = Mat2SeqTokenizer.from_pretrained(folder)
        automatic = AutoTokenizer.from_pretrained(folder)
        assert isinstance(automatic, Mat2SeqTokenizer)
        for other in (loaded, automatic, pickle.loads(pickle.dumps(one))):
            assert other.get_vocab() == one.get_vocab()
            assert other.settings == one.settings
            assert other.property_bins == one.property_bins
            assert other.encode(baddeleyite()) == one.encode(baddeleyite())


def test_a_vocabulary_of_other_settings_is_refused(tokenizer):
    with pytest.raises(ValueError, match="does not belong"):
        Mat2SeqTokenizer(digits_per_token=1, vocab=tokenizer.get_vocab())


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_are_padded_and_decode(tokenizer, side):
    batch = tokenizer([make() for make in CRYSTALS], padding=True, padding_side=side, return_tensors="pt")
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert tokenizer.batch_decode(batch["input_ids"]) == [tokenizer.decode(ids) for ids in batch["input_ids"]]
    decoded = tokenizer.batch_decode_structures(batch["input_ids"])
    assert [item.error for item in decoded] == [None] * len(CRYSTALS)
    assert [item.canonical for item in decoded] == [canonicalize(make()) for make in CRYSTALS]
    assert tokenizer.decode(batch["input_ids"]) == [tokenizer.to_text(make()) for make in CRYSTALS]


def test_a_process_pool_gives_the_same(tokenizer):
    records = [make() for make in CRYSTALS]
    assert tokenizer(records, num_workers=2)["input_ids"] == tokenizer(records)["input_ids"]


def test_truncation_is_refused_only_where_it_would_cut(tokenizer):
    assert tokenizer.encode(rutile(), truncation=True, max_length=64) == tokenizer.encode(rutile())
    with pytest.raises(ValueError, match="max_length is 10"):
        tokenizer.encode(rutile(), truncation=True, max_length=10)


def test_conditions_stand_in_front(tokenizer):
    text = tokenizer.decode(tokenizer.encode(rutile(), properties={"formation_energy": -3.1, "band_gap": 1.9}))
    assert text == "<band_gap> <bin_8> <formation_energy> <bin_4> " + RUTILE
    assert tokenizer.decode_structure(tokenizer.encode(text)).composition.reduced_formula == "TiO2"
    assert tokenizer.to_text(rutile(), properties={"band_gap": None, "formation_energy": float("nan")}) == RUTILE
    batch = tokenizer([rutile(), RUTILE], properties=[{}, {"band_gap": 0.0}])["input_ids"]
    assert tokenizer.decode(batch) == [RUTILE, "<band_gap> <bin_0> " + RUTILE]


def test_wrong_conditions_are_refused(tokenizer):
    with pytest.raises(ValueError, match="hardness.*band_gap"):
        tokenizer.encode(rutile(), properties={"hardness": 1.0})
    with pytest.raises(ValueError, match="2 sets of properties for 1"):
        tokenizer([rutile()], properties=[{}, {}])
    with pytest.raises(ValueError, match="increasing"):
        PropertyBins("x", "eV", (1.0, 1.0))
    with pytest.raises(ValueError, match="name"):
        PropertyBins("Band Gap", "eV", (1.0,))


def test_every_accepted_form_gives_the_same_ids(tokenizer, tmp_path):
    structure = canonicalize(rutile()).to_structure()
    path = tmp_path / "rutile.cif"
    path.write_text(structure.to(fmt="cif"))
    ids = tokenizer.encode(rutile())
    for form in (structure, str(path), path, path.read_text(), RUTILE, canonicalize(rutile())):
        assert tokenizer.encode(form) == ids


def test_elements_of_a_composition_are_in_the_order_of_formulas():
    assert sorted(ELEMENT_ORDER) == sorted(CHEMICAL_SYMBOLS[1:])
    assert tokenizer_order("O", "Sr", "Ti") == ["Sr", "Ti", "O"]
    assert tokenizer_order("H", "N") == ["N", "H"]


def tokenizer_order(*symbols: str) -> list[str]:
    return sorted(symbols, key=ELEMENT_ORDER.index)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Ti 2 O 4 | P4_2/mnm | a 4.59 c 2.96 | Ti 2a O 4f", MissingEndError),
        ("Ti 2 O 4 | P4_2/mnm | a 4.59 c 2.96 | Ti 2a", MissingEndError),
        ("Ti 2 O 4 | P4_2/mnm | a 4.59", MissingEndError),
        ("Ti 2 O 4", MissingEndError),
        ("Ti 2 Ti 4 | P4_2/mnm | a 4.59 c 2.96 | Ti 2a", UnexpectedTokenError),
        ("Ti O 4 | P4_2/mnm | a 4.59 c 2.96 | Ti 2a", UnexpectedTokenError),
        ("Ti 2 O 4 | P4_2/mnm | a 4.597 c 2.960 | Ti 2a O 4f .3050", UnexpectedTokenError),
        ("Ti 2 O 4 | P4_2/mnm | c 2.960 a 4.59 | Ti 2a O 4f .3050", UnexpectedTokenError),
        ("Ti 2 O 4 | P4_2/mnm | a 4.59 c 2.96 | Ti 2a O 8f .3050", UnknownPositionError),
        ("Ti 4 O 4 | P4_2/mnm | a 4.59 c 2.96 | Ti 2a Ti 2a O 4f .3050", RepeatedFixedPositionError),
        ("Ti 1 O 4 | P4_2/mnm | a 4.59 c 2.96 | Ti 2a O 4f .3050", CompositionMismatchError),
        ("Ti 2 O 4 | P4_2/mnm | a 0.00 c 2.96 | Ti 2a O 4f .3050", ImpossibleLatticeError),
        ("Ti 2 O 4 | P4_2/mnm | a 4.59 c 2.96 | Ti 2a O 4f .5000", CoincidingAtomsError),
        ("O 8 | P4_2/mnm | a 4.59 c 2.96 | O 4f .3050 O 4f .3050", CoincidingAtomsError),
        ("Li 1 | P1 | a 4.59 b 4.59 c 2.96 alpha 60.0 beta 60.0 gamma 170.0 | Li 1a .0000 .0000 .0000",
         ImpossibleLatticeError),
    ],
)  # fmt: skip
def test_wrong_sequences_say_what_is_wrong(tokenizer, text, kind):
    ids = tokenizer.encode(text)
    with pytest.raises(kind) as caught:
        tokenizer.decode_structure(ids)
    assert caught.value.reason
    (decoded,) = tokenizer.batch_decode_structures([ids])
    assert decoded.structure is None
    assert type(decoded.error) is kind
    assert type(pickle.loads(pickle.dumps(decoded.error))) is kind


def test_a_sequence_without_end_or_with_more_after_it_is_refused(tokenizer):
    ids = tokenizer.encode(RUTILE)
    with pytest.raises(MissingEndError):
        tokenizer.decode_structure(ids[:-1])
    with pytest.raises(UnexpectedTokenError):
        tokenizer.decode_structure([*ids, ids[1]])
    with pytest.raises(SequenceError):
        tokenizer.decode_structure([])


def test_prompts_get_no_end_and_whole_sequences_one(tokenizer):
    words = RUTILE.split()
    for end in range(1, len(words)):
        ids = tokenizer.encode(" ".join(words[:end]))
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.eos_token_id not in ids, words[:end]
    whole = tokenizer.encode(rutile())
    assert whole.count(tokenizer.eos_token_id) == 1
    assert tokenizer.encode(RUTILE) == tokenizer.encode(RUTILE.replace(" | ", " |")) == whole
    assert tokenizer.encode("Ti 2 O 4 |", properties={"band_gap": 1.9})[-1] == tokenizer.convert_tokens_to_ids("|")


def test_special_tokens_in_the_text_stay_where_none_are_added(tokenizer):
    for text in ("Ti 2 O 4 |", "<bos> Ti 2 O 4 |", f"<bos> {RUTILE} <eos>", RUTILE):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.encode(rutile(), add_special_tokens=False) == tokenizer.encode(rutile())[1:-1]


def test_text_generation_of_transformers_continues_a_prompt(tokenizer):
    from transformers import LlamaForCausalLM, pipeline

    from hf_crystal.checkpoints import checkpoint_folder

    model = LlamaForCausalLM.from_pretrained(checkpoint_folder("mat2seq-perov5"))
    stock = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompt = "Ba 1 Zr 1 O 3 |"
    text = stock(prompt, do_sample=False, max_new_tokens=60, max_length=None)[0]["generated_text"]
    assert text.startswith(prompt)
    assert tokenizer.decode_structure(tokenizer.encode(text)).composition.formula == "Ba1 Zr1 O3"


def test_text_with_unknown_words_names_the_word(tokenizer):
    with pytest.raises(UnexpectedTokenError, match="P99"):
        tokenizer.encode("Ti 2 O 4 | P99 | a 4.59")
    with pytest.raises(CrystalInputError):
        tokenizer.encode("no such file.cif")


def test_a_bad_crystal_in_a_batch_is_named(tokenizer):
    broken = {**rutile(), "frac_coords": np.zeros((6, 3))}
    with pytest.raises(CrystalInputError) as caught:
        tokenizer([rutile(), broken])
    assert caught.value.index == 1


@pytest.mark.slow
def test_random_tokens_give_a_crystal_or_a_reason(tokenizer):
    source = random.Random(0)
    size = len(tokenizer)
    known = [tokenizer.encode(make()) for make in CRYSTALS]
    outcomes = set()
    for _ in range(8000):
        if source.random() < 0.3:
            ids = [source.randrange(-1, size + 2) for _ in range(source.randrange(60))]
        else:
            ids = list(source.choice(known))
            for _ in range(source.randrange(1, 4)):
                place = source.randrange(len(ids))
                change = source.random()
                if change < 0.4:
                    ids[place] = source.randrange(size)
                elif change < 0.7:
                    ids[place] = source.choice(source.choice(known))
                elif len(ids) > 1:
                    del ids[place]
        try:
            outcomes.add(tokenizer.parse(ids).space_group)
        except SequenceError as error:
            outcomes.add(type(error))
    assert len(outcomes) > 6


@pytest.mark.parametrize(("name", "split"), DATASETS)
def test_real_crystals_survive_the_tokens(tokenizer, data_dir, name, split):
    records = read_records(data_dir, name, split, 12, seed=7)
    for record, ids in zip(records, tokenizer(records)["input_ids"], strict=True):
        assert tokenizer.parse(ids) == canonicalize(record)


def test_mp20_takes_at_most_sixty_tokens_on_average(tokenizer, data_dir):
    lengths = [len(ids) for ids in tokenizer(read_records(data_dir, "mp_20", "test", 100))["input_ids"]]
    assert np.mean(lengths) <= 60


@pytest.mark.parametrize("number", [-1, 2**32, 2**40, 2**63])
def test_ids_that_no_vocabulary_has_are_named(tokenizer, number):
    with pytest.raises(ValueError, match=rf"accepted are 0 to {len(tokenizer) - 1}"):
        tokenizer.decode([number])
    with pytest.raises(ValueError, match=f"<{number}>"):
        tokenizer.parse([tokenizer.bos_token_id, number])
