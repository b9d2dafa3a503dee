"""Cards: descriptions of our repositories, several targets, figures that are there and figures that are not."""

import json
from pathlib import Path

import pytest
from hub_exports import GENERATOR_METRICS, METRICS, tiny_generator
from tiny_models import tiny_model

from hf_crystal import render_model_card
from hf_crystal.card_figures import figure_rows, generation_rows, load_metrics
from hf_crystal.cards import shipped_folder, shipped_hub_config

OUR_REPOSITORIES = sorted(path.stem for path in shipped_folder("hub_configs").glob("*.json"))


def with_targets(*targets) -> dict:
    return {**METRICS, "test": {"targets": list(targets)}}


@pytest.mark.parametrize("name", OUR_REPOSITORIES)
def test_descriptions_of_our_repositories_make_a_card(name):
    generator = name.startswith("mat2seq")
    model = tiny_generator()[0] if generator else tiny_model()
    card = render_model_card(
        model, metrics=GENERATOR_METRICS if generator else METRICS, hub_config=shipped_hub_config(name)
    )
    described = json.loads(shipped_hub_config(name).read_text())
    title = described["title"].replace("{{target_names}}", "formation energy and band gap")
    assert f"\n# {title}\n" in card
    assert "{{" not in card
    assert described["repo"].partition("/")[2] == name


def test_card_names_every_target():
    card = render_model_card(tiny_model(), metrics=METRICS, hub_config=shipped_hub_config("crystalformer-mp20"))
    assert "# Crystalformer, formation energy and band gap, MP-20" in card
    assert "| predicts | formation_energy (eV/atom), band_gap (eV) |" in card
    assert "- formation-energy\n- band-gap\n" in card
    assert "| band_gap | eV | 20 | **0.5678** | 0.5578 to 0.5778 | 1.1356 | 1.7034 |" in card


def test_baseline_on_composition_stands_beside_each_target_that_has_it():
    energy, gap = METRICS["test"]["targets"]
    card = render_model_card(tiny_model(), metrics=with_targets({**energy, "composition_mae": 0.25}, gap))
    lines = [
        line for line in card.splitlines() if line.startswith(("| target", "| formation_energy |", "| band_gap |"))
    ]
    assert lines[0].endswith("| MAE of the mean predictor | MAE of a forest on the formula |")
    assert lines[1].endswith("| 0.3702 | 0.2500 |")
    assert lines[2].endswith("| 1.7034 | – |")


def test_what_pretraining_bought_stands_below_the_errors():
    target = {"name": "energy", "unit": "eV", "pretrained_mae": 0.1, "scratch_mae": 0.125, "difference": -0.025}
    comparison = {
        "pretrained": "crystalformer-mp20",
        "seeds": [1, 2, 3],
        "steps": [860],
        "targets": [{**target, "difference_interval": [-0.03, -0.02]}],
    }
    card = render_model_card(tiny_model(), metrics={**METRICS, "pretraining": comparison})
    assert "at equal budget (pretraining not counted), 860 optimizer steps each, means of 3 seeds:" in card
    assert "| energy | eV | **0.1000** | 0.1250 | -0.0250 | -0.0300 to -0.0200 |" in card
    assert "from scratch" not in render_model_card(tiny_model(), metrics=METRICS)


def test_figure_rows_of_a_property_model():
    energy, gap = METRICS["test"]["targets"]
    rows = figure_rows(with_targets({**energy, "composition_mae": 0.25, "composition_mae_interval": [0.2, 0.3]}, gap))
    forest = [row for row in rows if row["figure"] == "composition_mae"]
    assert not [row for row in rows if row["figure"] == "nonmetal_mae"]
    assert [(row["setting"], row["value"], row["low"], row["high"], row["unit"]) for row in forest] == [
        ("formation_energy", 0.25, 0.2, 0.3, "eV/atom")
    ]
    assert [row["unit"] for row in rows if row["figure"] == "r2"] == ["", ""]


def test_counts_become_shares_and_nested_sections_keep_their_names():
    metrics = {
        "generation": {
            "band_gap conditioning": {"success_rate": 0.5, "success_rate_interval": [0.4, 0.6], "samples": 100},
            "validity": {"valid": 0.5, "validity": 0.5, "validity_interval": [0.25, 0.75], "num_crystals": 8},
            "test split": [{"decoded": 30, "samples": 40, "protocol": "name-v1: prose", "uniqueness": None}],
        }
    }
    rows = generation_rows(metrics)
    assert [(row["figure"], row["value"], row["samples"], row["setting"]) for row in rows] == [
        ("success_rate", 0.5, 100, "band gap conditioning"),
        ("validity", 0.5, 8, "validity"),
        ("decoded", 0.75, 40, "test split, name-v1"),
    ]
    assert [(row["low"], row["high"]) for row in rows] == [(0.4, 0.6), (0.25, 0.75), (None, None)]


def test_results_of_the_evaluation_package_are_understood():
    from pymatgen.core import Lattice, Structure

    from hf_crystal.evaluation import match_rate, metre, uniqueness, validity

    crystal = Structure(Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    results = {
        "match": match_rate([[crystal]], [crystal], validity_filter="none"),
        "metre": metre([crystal], [crystal], validity_filter="none"),
        "valid": validity([crystal], composition=None),
        "unique": uniqueness([crystal]),
    }
    rows = generation_rows({"generation": {name: result.to_dict() for name, result in results.items()}})
    assert {(row["figure"], row["value"], row["samples"]) for row in rows} == {
        ("match_rate", 1.0, 1), ("metre", 1.0, 1), ("rmse", 0.0, 1), ("crmse", 0.0, 1),
        ("structure_validity", 1.0, 1), ("uniqueness", 1.0, 1),
    }  # fmt: skip
    assert {row["setting"] for row in rows} == {
        "match, diffcsp-match, n 1", "metre", "valid, cdvae-validity", "unique, uniqueness",
    }  # fmt: skip


def test_a_fine_tuned_model_names_its_base_and_inherits_the_license():
    def header(pretrained, **description):
        metrics = {**METRICS, "recipe": {"model": {"pretrained": str(pretrained)}}}
        return render_model_card(tiny_model(), metrics=metrics, hub_config=description or None).split("---")[1]

    embedded = header("crystalformer-mp")
    assert "base_model: hf_crystal/crystalformer-mp\n" in embedded and "license: cc-by-4.0" in embedded
    assert header("hf_crystal/crystalformer-mp") == embedded
    assert "base_model: owner/name\n" in header("owner/name") and "license: apache-2.0" in header("owner/name")
    assert "license: mit" in header("crystalformer-mp", license="mit")
    assert "base_model" not in header("model")


def test_a_generator_is_asked_for_what_it_knows():
    card = render_model_card(tiny_generator()[0], hub_config={"example": "Ti 2 O 4"})
    for text in ("generate Ti2O4 --num", 'pipe("Ti2O4"', 'composition={"Ti": 2, "O": 4},', '"<bos> Ti 2 O 4 |"'):
        assert text in card
    assert "Sr" not in card


def test_notes_of_the_evaluation_file_are_limits_of_this_checkpoint():
    card = render_model_card(tiny_model(), metrics={**METRICS, "notes": "Stopped early."})
    assert "- Nothing further is known about this checkpoint. Stopped early.\n" in card


def test_a_file_without_figures_is_refused(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"generation": [], "test": {}}))
    with pytest.raises(ValueError, match="has no list `targets`"):
        load_metrics(path)


def test_templates_and_descriptions_ship_with_the_wheel():
    import tomllib

    root = Path(__file__).resolve().parents[2]
    build = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    for folder in ("model_cards", "hub_configs"):
        assert build["wheel"]["force-include"][folder] == f"hf_crystal/{folder}"
        assert folder in build["sdist"]["include"]
        assert any((root / folder).iterdir())
