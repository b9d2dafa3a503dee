"""Pictures: their numbers are the model's, they can be saved, wrong arguments are refused with the reason."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import NACL, SRTIO3, tiny_model

import hf_crystal
from hf_crystal import viz
from hf_crystal.viz.curves import read_training_curve

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CURVE = [{"step": step, "loss": 1.0 / step, "learning_rate": 1e-3, "eval_mae": 2.0 / step} for step in (1, 10, 100)]


@pytest.fixture(scope="module", params=["crystalformer", "crystalframer"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def framer():
    return tiny_model("crystalframer")


def saved(figure, folder: Path) -> bytes:
    figure.savefig(folder / "picture.png")
    return (folder / "picture.png").read_bytes()


def test_import_loads_neither_torch_nor_matplotlib():
    code = "import sys, hf_crystal.viz; print(sorted({'torch', 'matplotlib', 'pymatgen'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
    assert all(callable(getattr(viz, name)) for name in viz.__all__)


def test_inspected_attention_is_that_of_the_model_and_of_its_images(model):
    before = dict(model.config.to_dict())
    view = viz.inspect_encoder(SRTIO3, model)
    batch = hf_crystal.CrystalFeatureExtractor()([SRTIO3])
    with torch.no_grad():
        expected = model(**batch, output_attentions=True)
    assert view.values["band_gap"] == pytest.approx(float(expected.logits[0, 1]), abs=1e-5)
    for block, attention in zip(view.blocks, expected.attentions, strict=True):
        np.testing.assert_allclose(block.attention, attention[0].numpy(), atol=1e-5)
        from_images = np.zeros_like(block.attention)
        for atom, detail in enumerate(block.atoms):
            for head in range(len(from_images)):
                np.add.at(from_images[head, atom], detail.keys, detail.weights[:, head])
            assert sum(weight for *_, weight in detail.shells()) == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_allclose(from_images, block.attention, atol=1e-5)
    assert view.labels == ["Sr1", "Ti2", "O3", "O4", "O5"]
    assert model.config.to_dict() == before
    assert not any("_with_angles" in layer.attention.__dict__ for layer in model.encoder.layers)


def test_shells_are_the_neighbors_of_the_crystal(framer):
    view = viz.inspect_encoder(SRTIO3, framer)
    distances = [(round(distance, 2), view.symbols[key]) for distance, key, _ in view.blocks[0].atoms[1].shells()]
    assert distances[:4] == [(0.0, "Ti"), (1.95, "O"), (1.95, "O"), (1.95, "O")]
    assert (3.38, "Sr") in distances


def test_frames_are_unit_vectors_whose_weights_sum_to_one(framer):
    view = viz.inspect_encoder(EXAMPLES / "LiFePO4.cif", framer)
    for block in view.blocks:
        for detail in block.atoms[:4]:
            np.testing.assert_allclose(np.linalg.norm(detail.axes[:, 2:5], axis=1), 1.0, atol=1e-5)
            for head in range(2):
                for axis in range(3):
                    chosen = (detail.axes[:, 0] == head) & (detail.axes[:, 1] == axis)
                    assert detail.axes[chosen, 5].sum() == pytest.approx(1.0, abs=1e-5)


def test_attention_and_frames_are_drawn(model, framer, tmp_path):
    figure = viz.plot_attention(SRTIO3, model, atom=1)
    matrix = viz.inspect_encoder(SRTIO3, model).blocks[0].attention.mean(axis=0)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), matrix)
    bars = sum(patch.get_height() for patch in figure.axes[2].patches)
    assert bars == pytest.approx(1.0, abs=0.02)  # all but what lies beyond the end of the axis
    assert len(saved(figure, tmp_path)) > 10_000
    assert len(viz.plot_attention(EXAMPLES / "LiFePO4.cif", model, block=-1, head=1).axes) == 3
    figure = viz.plot_frames([SRTIO3, NACL], framer, atom=[1, 0], head=1)
    assert len(figure.axes) == 4
    assert len(saved(figure, tmp_path)) > 10_000


def test_reciprocal_blocks_are_drawn_without_shells(tmp_path):
    torch.manual_seed(0)
    config = hf_crystal.CrystalformerConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, domain="reciprocal"
    )
    model = hf_crystal.CrystalformerForPropertyPrediction(config)
    figure = viz.plot_attention(NACL, model)
    assert "reciprocal space" in figure.axes[2].texts[0].get_text()
    with pytest.raises(ValueError, match="has no frames"):
        viz.plot_frames(NACL, model)


def test_wrong_places_are_refused(model):
    for options, message in (
        ({"atom": 5}, r"no atom 6 \(index 5\); SrTiO3 has 5"),
        ({"head": 2}, r"no head 3 \(index 2\); SrTiO3 has 2"),
        ({"block": 2}, r"no block 3 \(index 2\); the model has 2"),
    ):
        with pytest.raises(ValueError, match=message):
            viz.plot_attention(SRTIO3, model, **options)
    with pytest.raises(ValueError, match="2 entries for 1 crystals"):
        viz.plot_frames(SRTIO3, model, atom=[0, 1])


def test_parity_shows_the_error(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.normal(size=2000)
    predictions = labels + 0.1
    predictions[7] = np.nan
    figure = viz.plot_parity(predictions, labels, name="formation_energy", unit="eV/atom")
    assert "1,999 crystals, RMSE 0.1" in figure.axes[1].get_title()
    assert any("MAE" in text.get_text() and "0.1" in text.get_text() for text in figure.axes[1].get_legend().texts)
    assert figure.axes[0].get_xlabel() == "formation energy, eV/atom, label"
    assert len(saved(figure, tmp_path)) > 10_000
    assert len(viz.plot_parity([1.0, 2.0], [1.0, 2.5]).axes) == 2
    with pytest.raises(ValueError, match="2 predictions and 1 labels"):
        viz.plot_parity([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="no prediction has a label"):
        viz.plot_parity([1.0], [np.nan])


def test_training_curve_is_read_from_rows_files_and_folders(tmp_path):
    figure = viz.plot_training(CURVE)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "validation error", "learning rate"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [1.0, 0.1, 0.01])
    (tmp_path / "metrics.json").write_text(json.dumps({"training_curve": CURVE}))
    assert read_training_curve(tmp_path) == CURVE
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": CURVE[:2]}))
    assert read_training_curve(tmp_path / "trainer_state.json") == CURVE[:2]
    with pytest.raises(ValueError, match="no training curve"):
        viz.plot_training([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither metrics.json nor trainer_state.json"):
        viz.plot_training(tmp_path / "empty")


def test_perturbation_study_starts_at_the_prediction_and_is_repeatable(model, tmp_path):
    study = viz.perturbation_study(NACL, model, displacements=[0.0, 1e-3, 0.3], repeats=3, target="band_gap")
    batch = hf_crystal.CrystalFeatureExtractor()([NACL])
    with torch.no_grad():
        assert study.reference == pytest.approx(float(model(**batch).logits[0, 1]), abs=1e-5)
    assert (study.formula, study.target, study.unit) == ("NaCl", "band_gap", "eV")
    np.testing.assert_allclose(study.changes[0], 0.0, atol=1e-5)
    assert study.changes[2].min() > study.changes[1].max()
    again = viz.perturbation_study(NACL, model, displacements=[0.0, 1e-3, 0.3], repeats=3, target="band_gap")
    np.testing.assert_array_equal(again.values, study.values)
    figure = viz.plot_perturbation([NACL], {"mine": model}, displacements=[1e-2, 0.1], repeats=2)
    assert figure.axes[0].get_ylabel() == "change of formation energy, eV/atom"
    assert len(saved(figure, tmp_path)) > 10_000
    with pytest.raises(ValueError, match="target is 'volume'; the model has formation_energy, band_gap"):
        viz.perturbation_study(NACL, model, target="volume")
    with pytest.raises(ValueError, match="repeats 0"):
        viz.perturbation_study(NACL, model, repeats=0)


def test_every_word_of_a_sequence_has_a_meaning(tmp_path):
    crystal = hf_crystal.canonicalize(EXAMPLES / "TiO2_rutile.cif")
    words = viz.explain_sequence(crystal)
    assert " ".join(word.text for word in words) == crystal.to_text()
    meanings = {word.text: word.meaning for word in words}
    assert meanings["P4_2/mnm"] == "space group no. 136, tetragonal"
    assert meanings["c"] == "a cell length that symmetry leaves free"
    assert meanings["4f"] == "Wyckoff position: 4 atoms in the conventional cell, 1 free coordinate"
    assert meanings["2a"].endswith("fixed by symmetry")
    conditioned = viz.explain_sequence("<band_gap> <bin_3> " + crystal.to_text())
    assert [word.kind for word in conditioned[:3]] == ["condition", "condition", "composition"]
    assert viz.explain_sequence({"sequence": crystal.to_text()}) == words
    assert len(saved(viz.plot_sequence(NACL), tmp_path)) > 5_000
    with pytest.raises(ValueError, match="2 parts; expected composition"):
        viz.explain_sequence("Na 1 Cl 1 | Fm-3m")


def test_view_in_three_dimensions_is_one_page_without_addresses(framer, tmp_path):
    page = viz.view_3d(SRTIO3).html
    assert not re.search(r"(https?:)?//[a-z]+\.|src=|href=|@import", page)
    data = json.loads(re.search(r"const crystal=(.*?);</script>", page).group(1))
    # 8 corners, the center, 6 faces; 12 edges of the cell; Ti-O and Sr-O bonds
    assert (len(data["atoms"]), len(data["edges"])) == (15, 12)
    assert sorted(data["legend"])[0][0] == "O"
    lengths = {
        round(float(np.linalg.norm(np.subtract(data["atoms"][i][:3], data["atoms"][j][:3]))), 2)
        for i, j in data["bonds"]
    }
    assert lengths == {1.95, 2.76}
    inside = viz.view_3d(SRTIO3, inspected=viz.inspect_encoder(SRTIO3, framer), atom=1, head=0).html
    data = json.loads(re.search(r"const crystal=(.*?);</script>", inside).group(1))
    assert data["lines"]
    assert {arrow[8] for arrow in data["arrows"]} == {"e1", "e2", "e3"}
    assert viz.view_3d(NACL)._repr_html_().startswith("<iframe srcdoc=")
    viz.view_3d(NACL, repeat=(2, 2, 2)).save(tmp_path / "salt.html")
    assert (tmp_path / "salt.html").read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"repeat is \(0, 1, 1\)"):
        viz.view_3d(NACL, repeat=(0, 1, 1))


def drawn(structure, **options):
    return json.loads(re.search(r"const crystal=(.*?);</script>", viz.view_3d(structure, **options).html).group(1))


def test_elements_have_the_colors_of_the_programs_or_those_of_the_palette():
    legends = {scheme: dict(drawn(NACL, colors=scheme)["legend"]) for scheme in ("jmol", "vesta", "color-blind")}
    assert legends["jmol"] == dict(drawn(NACL)["legend"]) == {"Na": "#ab5cf2", "Cl": "#1ff01f"}
    assert legends["vesta"]["Na"] == "#f9dc3c"
    assert legends["color-blind"]["Na"] == "#0072B2"
    with pytest.raises(ValueError, match="colors is 'pink'; accepted: jmol, vesta, color-blind"):
        viz.view_3d(NACL, colors="pink")


def test_atoms_farther_apart_than_their_covalent_radii_have_no_bond():
    apart = {**NACL, "lattice": (np.array(NACL["lattice"]) * 1.5).tolist()}
    assert drawn(NACL)["bonds"]
    assert drawn(apart)["bonds"] == []


def test_a_large_cell_is_drawn_without_bonds():
    from hf_crystal.crystals.reading import record_to_structure

    large = record_to_structure(NACL)
    large.make_supercell([12, 12, 12])
    data = drawn(large)
    assert (len(data["atoms"]), data["bonds"]) == (3456, [])
