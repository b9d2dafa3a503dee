from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from hf_crystal.training import TrainingRecipe, load_recipe, recipe_files
from hf_crystal.training.property_data import load_property_data

RECIPES = sorted((Path(__file__).parents[2] / "scripts" / "recipes").glob("*.yaml"))
MINIMAL = {
    "model": {"model_type": "crystalformer"},
    "data": {"path": "x.parquet", "targets": [{"name": "energy", "unit": "eV"}]},
}


def test_there_is_a_recipe_for_every_published_setting():
    names = {path.stem for path in RECIPES}
    for model in ("crystalformer", "crystalframer"):
        for setting in ("mp-e-form", "mp-band-gap", "mp-bulk-modulus", "mp-shear-modulus"):
            assert f"{model}-{setting}" in names
        for setting in ("e-form", "total-energy", "band-gap-opt", "band-gap-mbj", "e-hull"):
            assert f"{model}-jarvis-{setting}" in names
        assert f"{model}-oqmd-e-form" in names
    assert {"crystalformer-mp20", "crystalframer-mp", "crystalformer-perov5"} <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_gives_a_config_and_states_its_cost(path):
    recipe = load_recipe(path)
    config = recipe.model_config()
    assert config.model_type == path.stem.split("-")[0]
    assert config.target_units == [target.unit for target in recipe.data.targets]
    assert any(word in recipe.cost.lower() for word in ("not measured", "measured on"))
    assert len(recipe.description) > 20


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("training", "learnin_rate", 1e-3, r"training: unknown key 'learnin_rate' \(did you mean 'learning_rate'\?\)"),
        (
            "model",
            "hiden_size",
            3,
            r"model: unknown key 'hiden_size' \(did you mean 'hidden_size'\?\); accepted: .*domain",
        ),
        ("model", "target_names", ["x"], "model: unknown key 'target_names'"),
        ("data", "color", "red", "data: unknown key 'color'; accepted: source, path"),
        ("training", "learning_rate", "5e-4", "training.learning_rate='5e-4'.*expected float.*write 5.0e-4"),
        ("training", "num_train_epochs", 2.5, "training.num_train_epochs=2.5: .*expected int"),
        ("training", "swa_epochs", 900, "training.swa_epochs=900: expected 0 to num_train_epochs=500"),
        ("training", "save_total_limit", 1, "training.save_total_limit=1"),
        ("training", "dtype", "float16", "training.dtype='float16'"),
        ("training", "optimizer", "sgd", "training.optimizer='sgd': .*expected one of .*adamw.*muon"),
        ("training", "muon_learning_rate", 0.0, "training.muon_learning_rate=0.0: expected above 0"),
        ("data", "source", "jarvs", "data.source='jarvs': expected file, jarvis or"),
        ("data", "cell_choice", "niggli", "data: Field 'cell_choice' expected one of .*primitive.*got niggli"),
        ("data", "targets", [], "data.targets is empty"),
        ("data", "targets", [{"name": "energy"}], r"data.targets\[0\]: .*missing .*'unit'"),
        ("data", "targets", [{"name": "a", "unit": ""}, {"name": "a", "unit": ""}], "names must differ"),
        ("model", "model_type", "gpt2", "model_type='gpt2': expected crystalformer or crystalframer"),
        ("model", "hidden_size", 17, "hidden_size=17"),
    ],
)
def test_mistakes_are_named(section, key, value, message):
    values = {name: dict(part) for name, part in MINIMAL.items()}
    values.setdefault("training", {})[key if section == "training" else "seed"] = value if section == "training" else 1
    if section != "training":
        values[section][key] = value
    with pytest.raises(ValueError, match=message):
        TrainingRecipe.from_dict(values)


def test_unknown_section_is_an_error():
    with pytest.raises(ValueError, match=r"recipe: unknown key 'modle' \(did you mean 'model'\?\)"):
        TrainingRecipe.from_dict({**MINIMAL, "modle": {}})


def test_overrides_and_round_trip(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    overrides = [
        "training.num_train_epochs=60",
        "model.domain=real-reci",
        "data.targets.0.column=e",
        "data.path=y.parquet",
    ]
    recipe = load_recipe(path, overrides)
    assert recipe.training.num_train_epochs == 60
    assert recipe.model_config().domain == "real-reci"
    assert recipe.data.targets[0].column == "e"
    recipe.save(tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_older_names_are_read_with_a_warning(monkeypatch):
    warned = []
    monkeypatch.setattr(recipe_files, "logger", SimpleNamespace(warning=warned.append))
    old = {"num_epochs": 60, "betas": [0.8, 0.9], "log_steps": 5, "keep_checkpoints": 3, "drop_last": False}
    training = TrainingRecipe.from_dict({**MINIMAL, "training": old}).training
    assert (training.num_train_epochs, training.adam_beta1, training.adam_beta2) == (60, 0.8, 0.9)
    assert (training.logging_steps, training.save_total_limit, training.drop_last_train_rows) == (5, 3, False)
    assert len(warned) == 1
    assert all(name in warned[0] for name in (*old, "num_train_epochs", "adam_beta1"))


def test_whole_numbers_are_read_where_a_float_belongs():
    training = TrainingRecipe.from_dict({**MINIMAL, "training": {"learning_rate": 1, "max_grad_norm": 2}}).training
    assert (type(training.learning_rate), training.max_grad_norm) == (float, 2.0)


def test_bad_override_and_bad_yaml_name_the_culprit(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    with pytest.raises(ValueError, match="override 'training': expected section.key=value"):
        load_recipe(path, ["training"])
    path.write_text("model: [")
    with pytest.raises(ValueError, match="recipe.yaml: not valid YAML"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("match_release", "explicit", "decay"), [(False, None, 0.0), (True, None, 1e-2), (True, 0.5, 0.5)]
)
def test_bias_decay_follows_match_release_unless_set(match_release, explicit, decay):
    values = {
        **MINIMAL,
        "model": {"model_type": "crystalformer", "match_release": match_release},
        "training": {"bias_weight_decay": explicit},
    }
    assert TrainingRecipe.from_dict(values).training.bias_weight_decay == decay


def test_a_table_for_the_recipe_of_a_benchmark_is_refused_with_the_way_out():
    path = next(path for path in RECIPES if path.stem == "crystalformer-mp-e-form")
    recipe = load_recipe(path, ["data.path=my_table.parquet"])
    with pytest.raises(ValueError, match=r"not my_table.parquet; for a table of crystals: --set data.source=file"):
        load_property_data(recipe.data, 0)
