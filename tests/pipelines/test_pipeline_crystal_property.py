"""The task "crystal-property-prediction": order, batches, streams, bad crystals, saving."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from pymatgen.core import Structure
from tiny_models import IRON, NACL, OVERLAPPING, SRTIO3, WITH_ERROR_HEAD, save_tiny_model, tiny_model
from transformers import pipeline

import hf_crystal
from hf_crystal import CrystalFeatureExtractor, CrystalPropertyPipeline

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TASK = "crystal-property-prediction"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline(TASK, model=str(folder))


def close(first: dict, second: dict) -> bool:
    """Equal up to float32 rounding, which depends on the batch."""
    return first.keys() == second.keys() and all(
        value == pytest.approx(second[key], abs=1e-5) for key, value in first.items()
    )


def test_one_crystal_gives_one_dictionary_with_value_and_unit_per_target(pipe):
    result = pipe(NACL)
    assert list(result) == [
        "formula",
        "num_atoms",
        "formation_energy",
        "formation_energy_unit",
        "band_gap",
        "band_gap_unit",
        "warnings",
    ]
    assert (result["formula"], result["num_atoms"]) == ("NaCl", 2)
    assert (result["formation_energy_unit"], result["band_gap_unit"]) == ("eV/atom", "eV")


def test_a_crystal_at_rest_is_not_doubted_and_others_are():
    pipe = pipeline(TASK)
    at_rest = Structure.from_file(EXAMPLES / "TiO2_rutile.cif")
    longer, shorter, unknown, exchanged, displaced = (at_rest.copy() for _ in range(5))
    exchanged.replace_species({"Ti": "O", "O": "Ti"})
    displaced.translate_sites([2, 3], [0.1, 0.0, 0.1])  # two of four oxygen atoms, by 0.5 Å
    longer.scale_lattice(1.1**3 * at_rest.volume)
    shorter.scale_lattice(0.9**3 * at_rest.volume)
    unknown.replace_species({"Ti": "Rn"})  # in no training crystal: no word about its size
    mixed = longer.copy()
    mixed.replace_species({"Ti": {"Ti": 0.5, "V": 0.5}})
    crystals = [at_rest, longer, shorter, exchanged, displaced, unknown, mixed]
    with pytest.warns(UserWarning, match="Rn: not in the training data"):
        results = pipe(crystals)
    found = [[text for text in result["warnings"] if "at rest" in text] for result in results]
    assert [len(texts) for texts in found] == [0, 1, 1, 1, 1, 0, 0]
    (ordered,) = pipe([mixed], disorder="orderings", num_orderings=1)
    assert any("edges look" in text for text in ordered["warnings"])  # their atoms would move anyhow
    diamond = pipe(EXAMPLES / "C_diamond.cif")
    assert not any("at rest" in text for text in diamond["warnings"])
    assert "longer" in found[1][0] and "shorter" in found[2][0]
    assert "does not look like" in found[4][0]


def test_results_have_errors_intervals_and_metals_where_the_model_has_a_head():
    model = tiny_model(**WITH_ERROR_HEAD)
    with torch.no_grad():
        model.error_head.interval_factor.fill_(100.0)
        model.error_head.metal_proj.weight *= 1000  # no doubtful ones
    results = CrystalPropertyPipeline(model=model, feature_extractor=CrystalFeatureExtractor())([NACL, SRTIO3, IRON])
    for result in results:
        for name in model.config.target_names:
            reach = result[f"{name}_high"] - result[name]
            assert reach == pytest.approx(100 * result[f"{name}_standard_error"], rel=1e-4)
        assert result["formation_energy"] - result["formation_energy_low"] == pytest.approx(
            result["formation_energy_high"] - result["formation_energy"]
        )
        assert result["band_gap_low"] == 0.0
        assert result["is_metal"] == (result["metal_probability"] > 0.5)
        assert result["band_gap"] == 0.0 or not result["is_metal"]
    assert len({result["formation_energy_standard_error"] for result in results}) == 3


def test_an_element_predicted_above_zero_is_doubtful():
    model = tiny_model(**WITH_ERROR_HEAD)
    predict = CrystalPropertyPipeline(model=model, feature_extractor=CrystalFeatureExtractor())
    found = {}
    for energy in (-50.0, 50.0):
        with torch.no_grad():
            model.head.target_mean[0] = energy
        found[energy] = [any("one element" in text for text in result["warnings"]) for result in predict([NACL, IRON])]
    assert found == {-50.0: [False, False], 50.0: [False, True]}


def test_values_are_those_of_the_model(pipe):
    batch = CrystalFeatureExtractor()([NACL])
    with torch.no_grad():
        expected = tiny_model()(**batch).logits[0].tolist()
    result = pipe(NACL)
    assert [result["formation_energy"], result["band_gap"]] == expected


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_results_keep_the_order_whatever_the_batches(pipe, batch_size):
    crystals = [IRON, SRTIO3, NACL, str(EXAMPLES / "LiFePO4.cif"), NACL, SRTIO3] * 6
    results = pipe(crystals, batch_size=batch_size)
    assert [row["formula"] for row in results] == ["Fe", "SrTiO3", "NaCl", "LiFePO4", "NaCl", "SrTiO3"] * 6
    alone = [pipe(crystal) for crystal in crystals[:6]]
    assert all(close(row, alone[index % 6]) for index, row in enumerate(results))


def test_every_form_of_a_crystal_gives_the_same(pipe):
    path = EXAMPLES / "SrTiO3.cif"
    structure = Structure.from_file(path)
    results = pipe([path, str(path), path.read_text(), structure, structure.to_ase_atoms(), SRTIO3])
    assert all(close(row, results[0]) for row in results)


def test_generator_is_streamed_and_not_read_ahead_beyond_a_chunk(pipe):
    taken = []

    def crystals():
        for index in range(200):
            taken.append(index)
            yield NACL

    results = pipe(crystals(), batch_size=2)
    assert len(taken) <= 1  # transformers looks at the first item
    assert next(results)["formula"] == "NaCl"
    assert len(taken) <= 2 * 16 + 1
    assert len(list(results)) == 199


def test_tables_iterators_and_tuples_are_accepted(pipe):
    rows = [{**NACL, "label": 1.0}, {**IRON, "label": 2.0}]
    table = datasets.Dataset.from_list(rows)
    for crystals in (table, iter(rows), tuple(rows), table.to_iterable_dataset()):
        assert [row["formula"] for row in pipe(crystals)] == ["NaCl", "Fe"]


def test_worker_processes_give_the_same(pipe):
    crystals = [NACL, OVERLAPPING, IRON, SRTIO3]
    assert pipe(crystals, num_workers=1) == pipe(crystals)


def test_unreadable_crystals_give_an_error_in_their_place(pipe):
    flat = {**NACL, "lattice": [[1, 0, 0], [2, 0, 0], [0, 0, 3]]}
    unknown = {**NACL, "atomic_numbers": [11, 200]}
    empty = {**NACL, "atomic_numbers": [], "frac_coords": []}
    nan = {**NACL, "frac_coords": [[0, 0, float("nan")], [0.5, 0.5, 0.5]]}
    bad = [OVERLAPPING, flat, unknown, empty, nan, "no/such.cif", "not a crystal\nat all", 7, None]
    results = pipe([NACL, *bad, IRON], batch_size=4)
    assert [results[0]["formula"], results[-1]["formula"]] == ["NaCl", "Fe"]
    for result in results[1:-1]:
        assert list(result) == ["error"]
        assert len(result["error"]) > 10
    assert "overlapping" in results[1]["error"]
    assert "atomic number 200" in results[3]["error"]
    assert "no such file" in results[6]["error"]


def test_only_bad_crystals(pipe):
    assert [list(row) for row in pipe([OVERLAPPING, OVERLAPPING])] == [["error"], ["error"]]


def test_empty_list_gives_empty_list(pipe):
    assert pipe([]) == []
    assert pipe(()) == []
    assert list(pipe(crystal for crystal in [])) == []


def test_embedding_on_request(pipe):
    result = pipe(SRTIO3, return_embedding=True)
    assert len(result["embedding"]) == 16
    assert "embedding" not in pipe(SRTIO3)


def test_large_crystals_are_split_by_atoms(pipe):
    sizes = []
    forward = pipe.forward
    pipe.forward = lambda inputs: sizes.append(tuple(inputs["atomic_numbers"].shape)) or forward(inputs)
    try:
        pipe([NACL, SRTIO3, SRTIO3, SRTIO3, NACL, NACL], batch_size=4, max_batch_atoms=10)
    finally:
        del pipe.forward
    assert sizes == [(2, 5), (2, 5), (2, 2)]


def test_saved_pipeline_loads_again(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    (task,) = json.loads((tmp_path / "config.json").read_text())["custom_pipelines"].values()
    assert task["pt"] == ["AutoModelForSequenceClassification"]  # a name that transformers itself knows
    assert pipeline(TASK, model=str(tmp_path))(NACL) == pipe(NACL)


def test_model_in_training_mode_is_put_in_evaluation(folder):
    model = tiny_model("crystalframer").train()
    pipe = CrystalPropertyPipeline(model=model, feature_extractor=CrystalFeatureExtractor())
    assert not model.training
    assert pipe(NACL) == pipe(NACL)


@pytest.mark.parametrize("architecture", ["crystalformer", "crystalframer"])
def test_batch_mates_do_not_change_a_prediction(architecture):
    pipe = CrystalPropertyPipeline(model=tiny_model(architecture), feature_extractor=CrystalFeatureExtractor())
    together = pipe([NACL, SRTIO3, IRON], batch_size=3)
    assert all(close(row, pipe(crystal)) for row, crystal in zip(together, (NACL, SRTIO3, IRON), strict=True))


def test_wrong_arguments_are_named(pipe, folder):
    with pytest.raises(TypeError, match=r"unknown arguments \['batchsize'\]; accepted are batch_size"):
        pipe([NACL], batchsize=3)
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        pipe([NACL], batch_size=0)
    with pytest.raises(ValueError, match="max_batch_atoms must be positive, got -1"):
        pipe([NACL], max_batch_atoms=-1)
    with pytest.raises(ValueError, match="feature_extractor is missing"):
        CrystalPropertyPipeline(model=tiny_model())
    model = tiny_model()
    model.config.target_names = ["formula", "band_gap"]
    with pytest.raises(ValueError, match=r"target names \['formula'\] of the model collide"):
        CrystalPropertyPipeline(model=model, feature_extractor=CrystalFeatureExtractor())


def test_auto_classes_load_the_folder(folder):
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForSequenceClassification

    assert type(AutoConfig.from_pretrained(folder)) is hf_crystal.CrystalformerConfig
    assert type(AutoModel.from_pretrained(folder)) is hf_crystal.CrystalformerModel
    for auto_class in (AutoModelForSequenceClassification, hf_crystal.AutoModelForCrystalPropertyPrediction):
        assert type(auto_class.from_pretrained(folder)) is hf_crystal.CrystalformerForPropertyPrediction
    assert type(AutoFeatureExtractor.from_pretrained(folder)) is CrystalFeatureExtractor


def test_default_is_the_embedded_checkpoint():
    if not hf_crystal.checkpoints.embedded_checkpoints():
        pytest.skip("this checkout has no embedded checkpoint yet")
    pipe = pipeline(TASK)
    assert Path(pipe.model.name_or_path) == hf_crystal.embedded_checkpoint()
    assert pipe(str(EXAMPLES / "NaCl.cif"))["formula"] == "NaCl"
