"""Crystals of any form become padded tensors; bad ones stop the call or stand aside with a reason."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

import hf_crystal  # noqa: F401  registers the extractor
from hf_crystal.crystals.reading import CrystalInputError, as_record, record_to_structure
from hf_crystal.encoders.feature_extraction_crystal import CrystalError, CrystalFeatureExtractor
from hf_crystal.hub.files import code_files, edit_json, reference

SALT = {
    "lattice": [5.64, 0, 0, 0, 5.64, 0, 0, 0, 5.64],
    "frac_coords": [0, 0, 0, 0, 0.5, 0.5, 0.5, 0, 0.5, 0.5, 0.5, 0, 0.5, 0, 0, 0.5, 0.5, 0.5, 0, 0, 0.5, 0, 0.5, 0],
    "atomic_numbers": [11] * 4 + [17] * 4,
}
IRON = {
    "lattice": [2.87, 0, 0, 0, 2.87, 0, 0, 0, 2.87],
    "frac_coords": [0, 0, 0, 0.5, 0.5, 0.5],
    "atomic_numbers": [26, 26],
}
PEROVSKITE = {
    "cell": np.eye(3) * 3.905,
    "frac_coords": [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
    "atomic_numbers": [38, 22, 8, 8, 8],
}
BAD = {
    "flat": {**IRON, "lattice": [1, 0, 0, 0, 1, 0, 1, 1, 0]},
    "nan": {**IRON, "frac_coords": [0, 0, 0, float("nan"), 0.5, 0.5]},
    "overlap": {**IRON, "frac_coords": [0, 0, 0, 1, 1, 0.999]},
    "element": {**IRON, "atomic_numbers": [26, 119]},
    "shape": {**IRON, "frac_coords": [0, 0, 0]},
    "transposed": {**IRON, "frac_coords": [[0, 0.5], [0, 0.5], [0, 0.5]]},
    "twins": {**IRON, "positions": [[0, 0, 0], [1, 1, 1]]},
    "unit": {**IRON, "units": "bohr"},
    "unit of lengths": {**IRON, "units": {"energy": "eV", "length": "bohr"}},
    "empty": {**IRON, "frac_coords": [], "atomic_numbers": []},
    "none": None,
    "file": "missing.cif",
}


def test_mixed_forms_are_padded_to_one_batch():
    structure = record_to_structure(SALT)
    batch = CrystalFeatureExtractor()([IRON, structure, PEROVSKITE, structure.to(fmt="cif")])
    assert set(batch) == {"atomic_numbers", "positions", "cell", "attention_mask"}
    assert batch["atomic_numbers"].shape == (4, 8) and batch["atomic_numbers"].dtype == torch.int64
    assert batch["positions"].shape == (4, 8, 3) and batch["positions"].dtype == torch.float32
    assert batch["cell"].shape == (4, 3, 3) and batch["cell"].dtype == torch.float32
    assert batch["attention_mask"].sum(dim=1).tolist() == [2, 8, 5, 8]
    assert (batch["attention_mask"].bool() == (batch["atomic_numbers"] > 0)).all()
    assert not batch["positions"][batch["attention_mask"] == 0].any()
    torch.testing.assert_close(batch["positions"][2, 1], torch.full((3,), 3.905 / 2))
    assert batch.errors == [] and batch.kept == [0, 1, 2, 3]


def test_positions_are_formed_in_double_precision():
    far = {**IRON, "frac_coords": [100_000.25, 0, 0, 100_000.75, 0.5, 0.5]}
    batch = CrystalFeatureExtractor(float_dtype="float64")([far, far])
    assert batch["positions"].dtype == batch["cell"].dtype == torch.float64
    assert batch["positions"][0, 0, 0].item() == 100_000.25 * 2.87
    single = CrystalFeatureExtractor(float_dtype="float64").extract(far)
    np.testing.assert_array_equal(single["positions"], batch["positions"][0].numpy())


def test_one_crystal_is_a_batch_of_one():
    extractor = CrystalFeatureExtractor()
    structure = record_to_structure(SALT)
    for one in (SALT, structure, as_record(SALT), structure.to(fmt="poscar")):
        batch = extractor(one)
        assert batch["positions"].shape == (1, 8, 3)
        torch.testing.assert_close(batch["positions"], extractor([SALT])["positions"])
    assert extractor(iter([SALT, IRON]))["positions"].shape == (2, 8, 3)
    assert extractor((SALT, IRON), return_tensors="np")["cell"].__class__ is np.ndarray


def test_padding_can_be_rounded_up():
    assert CrystalFeatureExtractor(pad_to_multiple_of=16)([SALT])["positions"].shape == (1, 16, 3)
    assert CrystalFeatureExtractor()([SALT], pad_to_multiple_of=5)["positions"].shape == (1, 10, 3)


def test_extract_and_pad_equal_the_call():
    extractor = CrystalFeatureExtractor()
    crystals = [IRON, SALT, PEROVSKITE]
    padded = extractor.pad([extractor.extract(crystal) for crystal in crystals])
    batch = extractor(crystals)
    for name in batch:
        torch.testing.assert_close(padded[name], batch[name], rtol=0, atol=1e-6)


def test_the_fast_way_for_rows_equals_the_slow_one(data_dir):
    import pyarrow.parquet as pq

    table = pq.read_table(data_dir / "perov_5.parquet", columns=["lattice", "frac_coords", "atomic_numbers"])
    rows = table.slice(0, 50).to_pylist() + [SALT, IRON]
    extractor = CrystalFeatureExtractor(float_dtype="float64")
    fast = extractor(rows)
    slow = extractor([as_record(row) for row in rows])
    for name in fast:
        torch.testing.assert_close(fast[name], slow[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("fault", sorted(BAD))
def test_a_bad_crystal_stops_the_call_with_its_place(fault):
    with pytest.raises(CrystalInputError) as caught:
        CrystalFeatureExtractor()([SALT, IRON, BAD[fault], SALT])
    assert caught.value.index == 2


def test_skip_keeps_the_rest_and_says_what_was_left_out():
    crystals = [SALT, *BAD.values(), PEROVSKITE]
    extractor = CrystalFeatureExtractor()
    batch = extractor(crystals, on_error="skip")
    assert batch.kept == [0, len(crystals) - 1]
    assert batch["attention_mask"].sum(dim=1).tolist() == [8, 5]
    assert [error.index for error in batch.errors] == list(range(1, len(BAD) + 1))
    assert all(isinstance(error, CrystalError) and error.reason for error in batch.errors)
    index, name, reason = batch.errors[-1]
    assert (index, name) == (len(BAD), "missing.cif") and "no such file" in reason
    again, errors = extractor(crystals, on_error="return")
    assert errors == batch.errors
    torch.testing.assert_close(again["positions"], batch["positions"])


def test_a_batch_of_nothing_but_faults_is_empty():
    batch = CrystalFeatureExtractor()(list(BAD.values()), on_error="skip")
    assert batch["positions"].shape == (0, 0, 3) and batch["cell"].shape == (0, 3, 3)
    assert len(batch.errors) == len(BAD) and batch.kept == []


def test_batches_keep_their_errors_through_pickling_and_moving():
    batch = CrystalFeatureExtractor()([SALT, None], on_error="skip")
    for copy in (pickle.loads(pickle.dumps(batch)), batch.to("cpu")):
        assert copy.errors == batch.errors and copy.kept == [0]
        torch.testing.assert_close(copy["positions"], batch["positions"])


def test_wrong_arguments_are_refused():
    extractor = CrystalFeatureExtractor()
    with pytest.raises(ValueError, match="the list is empty"):
        extractor([])
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        extractor([SALT], on_error="ignore")
    for options, reason in (
        ({"cell_choice": "niggli"}, "cell_choice is 'niggli'"),
        ({"float_dtype": "bfloat16"}, "float_dtype is 'bfloat16'"),
        ({"max_atomic_number": 300}, "accepted are 1 to 118"),
        ({"min_distance": -1.0}, "may be negative"),
    ):
        with pytest.raises(ValueError, match=reason):
            CrystalFeatureExtractor(**options)


def test_limits_apply_to_rows_and_objects():
    for crystals in ([SALT, IRON], [as_record(SALT), as_record(IRON)]):
        with pytest.raises(CrystalInputError, match="max_atoms = 4"):
            CrystalFeatureExtractor(max_atoms=4)(crystals)
        with pytest.raises(CrystalInputError, match="accepted are 1 to 16"):
            CrystalFeatureExtractor(max_atomic_number=16)(crystals)
        with pytest.raises(CrystalInputError, match="at least 3.0 Å is accepted"):
            CrystalFeatureExtractor(min_distance=3.0)(crystals)
        with pytest.raises(CrystalInputError, match="100.0 Å³ per atom"):
            CrystalFeatureExtractor(min_volume_per_atom=100.0)(crystals)


def test_primitive_cell_on_request():
    batch = CrystalFeatureExtractor(cell_choice="primitive", float_dtype="float64")([SALT, IRON, PEROVSKITE])
    assert batch["attention_mask"].sum(dim=1).tolist() == [2, 1, 5]
    volumes = torch.linalg.det(batch["cell"]).abs()
    torch.testing.assert_close(volumes, torch.tensor([5.64**3 / 4, 2.87**3 / 2, 3.905**3], dtype=torch.float64))
    with pytest.raises(CrystalInputError, match="flat"):
        CrystalFeatureExtractor(cell_choice="primitive")([BAD["flat"]])
    # max_atoms counts the cell that the model will see
    assert CrystalFeatureExtractor(cell_choice="primitive", max_atoms=2)([SALT])["cell"].shape == (1, 3, 3)


def test_settings_are_saved_and_loaded(tmp_path):
    options = {
        "max_atomic_number": 100,
        "min_distance": 0.3,
        "min_volume_per_atom": 1.0,
        "max_atoms": 500,
        "cell_choice": "primitive",
        "symprec": 0.05,
        "float_dtype": "float64",
        "pad_to_multiple_of": 8,
    }
    CrystalFeatureExtractor(**options).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved == {**options, "feature_extractor_type": "CrystalFeatureExtractor"}
    for loaded in (CrystalFeatureExtractor.from_pretrained(tmp_path), AutoFeatureExtractor.from_pretrained(tmp_path)):
        assert isinstance(loaded, CrystalFeatureExtractor)
        assert loaded.to_dict() == CrystalFeatureExtractor(**options).to_dict()


def test_dtype_of_the_model_leaves_the_settings_alone(tmp_path):
    """`pipeline()` passes the model's dtype to every `from_pretrained`."""
    CrystalFeatureExtractor(float_dtype="float64").save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path, dtype="auto", torch_dtype="auto", trust_remote_code=False)
    assert loaded.float_dtype == "float64"
    assert loaded([IRON])["positions"].dtype == torch.float64


def test_travels_as_remote_code_with_numpy_only(tmp_path):
    """A saved folder works where only torch, transformers and numpy exist."""
    folder = tmp_path / "repository"
    CrystalFeatureExtractor(min_distance=0.2).save_pretrained(folder)
    for name, text in code_files(CrystalFeatureExtractor).items():
        (folder / name).write_text(text, encoding="utf-8")
    auto_map = {"AutoFeatureExtractor": reference(CrystalFeatureExtractor)}
    edit_json(folder / "preprocessor_config.json", {"auto_map": auto_map})
    code = f"""
import sys
for name in ("hf_crystal", "pymatgen", "ase", "moyopy", "datasets", "pandas"):
    sys.modules[name] = None
from transformers import AutoFeatureExtractor
extractor = AutoFeatureExtractor.from_pretrained({str(folder)!r}, trust_remote_code=True)
assert type(extractor).__module__.startswith("transformers_modules"), type(extractor)
assert extractor.min_distance == 0.2
batch = extractor([{SALT!r}, {IRON!r}, {{"cell": [1.0]}}], on_error="skip")
assert batch["positions"].shape == (2, 8, 3) and len(batch.errors) == 1
"""
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
