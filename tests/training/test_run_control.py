"""Which checkpoint a run goes on from, and what its record says of folders."""

import pytest

from hf_crystal.training.recipe_files import without_folders
from hf_crystal.training.run_control import BEGUN_WITH_NAME, COMPLETE_MARKER_NAME, open_run

RECIPE = {
    "model": {"hidden_size": 96},
    "data": {"path": "table.csv"},
    "training": {"batch_size": 4, "num_train_epochs": 2, "seed": 1},
}


def begin(folder):
    """A run with one complete checkpoint."""
    open_run(folder, RECIPE, resume=False)
    (folder / "checkpoints/checkpoint-5").mkdir()
    (folder / "checkpoints/checkpoint-5" / COMPLETE_MARKER_NAME).write_text("{}")


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [("training", "batch_size", 1), ("training", "seed", 2), ("model", "hidden_size", 64), ("data", "path", "b.csv")],
)
def test_a_run_is_not_resumed_with_another_recipe(tmp_path, section, name, value):
    begin(tmp_path)
    changed = {**RECIPE, section: {**RECIPE[section], name: value}}
    was = RECIPE[section][name]
    with pytest.raises(ValueError, match=rf"{section}.{name} was {was!r} and is {value!r}"):
        open_run(tmp_path, changed, resume=True)


def test_a_run_is_resumed_for_more_epochs_and_after_an_update(tmp_path):
    begin(tmp_path)
    longer = {**RECIPE, "training": {**RECIPE["training"], "num_train_epochs": 9}}
    checkpoint = tmp_path / "checkpoints/checkpoint-5"
    assert open_run(tmp_path, longer, resume=True)[1] == checkpoint
    (tmp_path / "checkpoints" / BEGUN_WITH_NAME).unlink()  # a run of an earlier version
    assert open_run(tmp_path, {}, resume=True)[1] == checkpoint


def test_a_run_goes_on_from_its_last_complete_checkpoint(tmp_path):
    assert open_run(tmp_path, RECIPE, resume=False) == (tmp_path / "checkpoints", None)
    for step in (5, 10, 15):
        (tmp_path / f"checkpoints/checkpoint-{step}").mkdir()
    for step in (5, 10):
        (tmp_path / f"checkpoints/checkpoint-{step}" / COMPLETE_MARKER_NAME).write_text("{}")
    assert open_run(tmp_path, RECIPE, resume=True)[1] == tmp_path / "checkpoints/checkpoint-10"
    with pytest.raises(FileExistsError, match="checkpoints of another run"):
        open_run(tmp_path, RECIPE, resume=False)


def test_killed_before_its_first_checkpoint_a_run_begins_anew(tmp_path):
    (tmp_path / "checkpoints/checkpoint-5").mkdir(parents=True)
    assert open_run(tmp_path, RECIPE, resume=True) == (tmp_path / "checkpoints", None)


def test_no_run_to_resume(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoints does not exist: no complete checkpoint to resume from"):
        open_run(tmp_path, RECIPE, resume=True)


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
