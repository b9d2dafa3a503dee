"""Vectors of crystals and atoms, and the search among them."""

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from scipy.spatial.distance import cdist
from tiny_models import IRON, NACL, OVERLAPPING, SRTIO3, save_tiny_model, tiny_model

import hf_crystal
from hf_crystal.crystals.record import CrystalInputError, CrystalRecord
from hf_crystal.embeddings import EmbeddingTable, embed, iterate_embeddings

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_crystal_vectors_are_what_the_head_sees_and_atom_vectors_their_parts(model):
    batch = hf_crystal.CrystalFeatureExtractor()([NACL, SRTIO3, IRON])
    with torch.no_grad():
        expected = model(**batch)
    crystals = embed([NACL, SRTIO3, IRON], model, batch_size=2)
    atoms = embed([NACL, SRTIO3, IRON], model, level="atom", batch_size=2)
    assert crystals.dtype == np.float32
    np.testing.assert_allclose(crystals, expected.pooler_output.numpy(), atol=1e-5)
    assert [len(rows) for rows in atoms] == [2, 5, 2]
    np.testing.assert_allclose([rows.mean(axis=0) for rows in atoms], crystals, atol=1e-5)
    with torch.no_grad():
        states = model.encoder(**batch).last_hidden_state[1].numpy()
    np.testing.assert_allclose(atoms[1], states, atol=1e-5)


def test_one_crystal_gives_one_vector_whatever_its_form(model):
    path = EXAMPLES / "NaCl.cif"
    structure = hf_crystal.crystals.reading.record_to_structure(path)
    record = CrystalRecord(np.array(structure.atomic_numbers), structure.frac_coords, structure.lattice.matrix)
    for given in (path, str(path), path.read_text(), structure, structure.to_ase_atoms(), record):
        vector = embed(given, model)
        assert vector.shape == (16,)
        np.testing.assert_allclose(vector, embed([path], model)[0], atol=1e-5)
    assert embed(structure, model, level="atom").shape == (8, 16)
    assert hf_crystal.embed is embed


def test_description_of_the_crystal_does_not_matter(model):
    doubled = {
        "lattice": np.array(NACL["lattice"]) * [[2], [1], [1]],
        "frac_coords": [[0, 0, 0], [0.25, 0.5, 0.5], [0.5, 0, 0], [0.75, 0.5, 0.5]],
        "atomic_numbers": [11, 17, 11, 17],
    }
    np.testing.assert_allclose(embed(doubled, model), embed(NACL, model), atol=1e-4)


def test_order_and_errors_survive_sorting_into_batches(model):
    crystals = [NACL, OVERLAPPING, SRTIO3, IRON, SRTIO3, NACL] * 8
    found = list(iterate_embeddings(iter(crystals), model, batch_size=2))
    assert [item.formula for item in found] == ["NaCl", "", "SrTiO3", "Fe", "SrTiO3", "NaCl"] * 8
    assert all("overlapping" in item.error for item in found[1::6])
    np.testing.assert_allclose(found[-1].embedding, found[0].embedding, atol=1e-5)
    with pytest.raises(CrystalInputError, match="crystal 1: overlapping atoms"):
        embed([NACL, OVERLAPPING], model)


def test_wrong_arguments(model):
    with pytest.raises(ValueError, match="the list is empty"):
        embed([], model)
    with pytest.raises(ValueError, match="level is 'molecule'"):
        embed(NACL, model, level="molecule")
    with pytest.raises(ValueError, match="batch_size 0"):
        embed(NACL, model, batch_size=0)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_neighbors_are_those_of_comparing_all(metric):
    rng = np.random.default_rng(0)
    rows, queries = rng.normal(size=(300, 8)).astype(np.float32), rng.normal(size=(40, 8)).astype(np.float32)
    expected = cdist(queries.astype(float), rows.astype(float), metric)
    found = EmbeddingTable([f"row {index}" for index in range(300)], rows).nearest(queries, 7, metric=metric)
    indices = [[neighbor.index for neighbor in neighbors] for neighbors in found]
    assert indices == np.argsort(expected, axis=1, kind="stable")[:, :7].tolist()
    distances = [[neighbor.distance for neighbor in neighbors] for neighbors in found]
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :7], atol=1e-6)
    assert found[0][0].name == f"row {found[0][0].index}"


def test_near_duplicates_far_from_the_origin_keep_their_order():
    """The expanded square has an error of 1e-3 here; the answer does not."""
    rows = np.full((50, 4), 1000.0, dtype=np.float32)
    rows[:, 0] += np.arange(50, dtype=np.float32) * 0.001
    found = EmbeddingTable([str(index) for index in range(50)], rows).nearest(rows[10], 1)
    assert (found[0].index, found[0].distance) == (10, 0.0)


def test_a_table_survives_its_file_and_says_what_does_not_fit(model, tmp_path):
    path = tmp_path / "table.parquet"
    vectors = embed([NACL, SRTIO3, IRON], model)
    EmbeddingTable(["salt", "titanate", "iron"], vectors).save(path)
    table = EmbeddingTable.load(path)
    assert (table.names, len(table)) == (["salt", "titanate", "iron"], 3)
    assert [item.name for item in table.nearest(vectors[1], 9)][0] == "titanate"
    assert len(table.nearest(vectors[1], 9)) == 3
    with pytest.raises(ValueError, match="vectors of 16"):
        table.nearest(vectors[:, :5])
    with pytest.raises(ValueError, match="metric 'angle'"):
        table.nearest(vectors, metric="angle")
    with pytest.raises(ValueError, match=r"2 names and embeddings of shape \(3, 16\)"):
        EmbeddingTable(["a", "b"], vectors)
    pyarrow.parquet.write_table(pyarrow.table({"formula": ["NaCl"]}), path)
    with pytest.raises(ValueError, match="needed are source and embedding"):
        EmbeddingTable.load(path)
    path.write_text("formula\nNaCl\n")
    with pytest.raises(ValueError, match="is not a parquet file"):
        EmbeddingTable.load(path)


def test_model_may_be_a_folder(tmp_path):
    assert embed(NACL, save_tiny_model(tmp_path)).shape == (16,)
