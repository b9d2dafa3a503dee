"""Which checkpoint a run goes on from, and what its record says of folders."""

import pytest

from hf_crystal.training.recipe_files import without_folders
from hf_crystal.training.run_control import COMPLETE_MARKER_NAME, open_run


def test_a_run_goes_on_from_its_last_complete_checkpoint(tmp_path):
    assert open_run(tmp_path, resume=False) == (tmp_path / "checkpoints", None)
    for step in (5, 10, 15):
        (tmp_path / f"checkpoints/checkpoint-{step}").mkdir(parents=True)
    for step in (5, 10):
        (tmp_path / f"checkpoints/checkpoint-{step}" / COMPLETE_MARKER_NAME).write_text("{}")
    assert open_run(tmp_path, resume=True)[1] == tmp_path / "checkpoints/checkpoint-10"
    with pytest.raises(FileExistsError, match="checkpoints of another run"):
        open_run(tmp_path, resume=False)


def test_killed_before_its_first_checkpoint_a_run_begins_anew(tmp_path):
    (tmp_path / "checkpoints/checkpoint-5").mkdir(parents=True)
    assert open_run(tmp_path, resume=True) == (tmp_path / "checkpoints", None)


def test_no_run_to_resume(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoints does not exist: no complete checkpoint to resume from"):
        open_run(tmp_path, resume=True)


def test_record_names_no_folder(tmp_path):
    recipe = {"cost": "", "data": {"path": "/data/mp_20.parquet"}, "model": {"pretrained": str(tmp_path / "start")}}
    (tmp_path / "start").mkdir()
    assert without_folders(recipe) == {
        "cost": "",
        "data": {"path": "mp_20.parquet"},
        "model": {"pretrained": "start"},
    }
    assert without_folders({"data": {"path": None}, "model": {"pretrained": "owner/name"}})["model"] == {
        "pretrained": "owner/name"
    }
    assert recipe["data"]["path"] == "/data/mp_20.parquet"
