"""`hf-crystal push` and the figures of `hf-crystal info`."""

import json
from pathlib import Path

import pytest
from tiny_models import save_tiny_model

from hf_crystal import checkpoints, hub
from hf_crystal.cli.main import run
from hf_crystal.hub.push import PushedRepositories


@pytest.fixture
def pushed(monkeypatch):
    """Records what the command asks of `push_folder`, which tests/hub covers."""
    calls = []

    def record(folder, repository, **options):
        calls.append((str(folder), repository, options))
        return PushedRepositories("https://hub/me/model", "https://hub/datasets/me/model-results")

    monkeypatch.setattr(hub, "push_folder", record)
    return calls


def test_push_says_where_things_went(pushed, capsys, tmp_path):
    assert run(["push", str(tmp_path), "me/model", "--private", "--overwrite"]) == 0
    assert pushed == [(str(tmp_path), "me/model", {"private": True, "overwrite": True})]
    out = capsys.readouterr().out
    assert out == "model: https://hub/me/model\nevaluation results: https://hub/datasets/me/model-results\n"


def test_all_embedded_models_go_to_an_owner(pushed, monkeypatch, capsys):
    monkeypatch.setattr(hub, "export_pretrained", lambda name, out, **options: out.mkdir())
    assert run(["push", "--all", "me"]) == 0
    names = [*checkpoints.embedded_checkpoints(), *checkpoints.embedded_generators()]
    assert [(Path(folder).name, repository) for folder, repository, _ in pushed] == [(n, f"me/{n}") for n in names]
    capsys.readouterr()
    assert run(["push", "--all", "me/models", "--dry-run"]) == 1
    assert "me/models/crystalformer-mp" in capsys.readouterr().err
    assert run(["push", "--all", "me", "me/model"]) != 0 and run(["push", "exported"]) != 0
    err = capsys.readouterr().err
    assert "with --all takes one owner" in err and "takes a repository beside the folder" in err


def test_push_of_no_export_is_one_line(capsys, tmp_path):
    assert run(["push", str(tmp_path), "me/model"]) == 1
    assert capsys.readouterr().err.startswith(f"hf-crystal: error: {tmp_path} is no exported folder, it lacks config")


def test_info_shows_every_target_beside_its_baselines(monkeypatch, capsys, tmp_path):
    save_tiny_model(tmp_path / "two-targets")
    figures = {"n": 1200, "rmse": 0.5, "baseline_mae": 1.0}
    targets = [
        {**figures, "name": "formation_energy", "unit": "eV/atom", "mae": 0.125, "composition_mae": 0.25},
        {**figures, "name": "band_gap", "unit": "eV", "mae": 0.375},
    ]
    record = {"num_parameters": 1234, "test": {"targets": targets}}
    (tmp_path / "two-targets" / "metrics.json").write_text(json.dumps(record))
    (tmp_path / "two-targets" / "config.json").write_text('{"trained_elements": {"Na": 2, "Cl": 2}}')
    result = "{task: {type: a}, dataset: {name: Salts, type: b, split: test}, metrics: [{type: mae, value: 1}]}"
    (tmp_path / "two-targets" / "README.md").write_text(f"---\nmodel-index: [{{name: a, results: [{result}]}}]\n---\n")
    monkeypatch.setattr(checkpoints, "_ROOT", tmp_path)
    assert run(["info", "two-targets"]) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "  two-targets: crystal properties, 1,234 parameters, 2 elements seen",
        "    tested on the test part of: Salts",
        "    formation_energy: test MAE 0.1250 eV/atom (formula only 0.2500, mean predictor 1.0000; 1,200 crystals)",
        "    band_gap: test MAE 0.3750 eV (mean predictor 1.0000; 1,200 crystals)",
    ]
    assert run(["info", "two-target"]) == 1
    assert "available: ['two-targets']" in capsys.readouterr().err
