"""Write into the config of a checkpoint which elements its training crystals have; the weights stay as they are.

Usage: python scripts/record_training_domain.py CHECKPOINT TABLE

The recipe in CHECKPOINT/metrics.json says which rows of TABLE were trained on; their number must be the recorded one.
Trainings write these fields themselves.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from hf_crystal.crystals.doubts import training_domain
from hf_crystal.data import load_crystal_dataset
from hf_crystal.hub.files import edit_json
from hf_crystal.loading import load_generator
from hf_crystal.training.generator_data import element_blocks, tokenize_splits
from hf_crystal.training.generator_recipe import GeneratorDataArguments
from hf_crystal.training.property_data import load_property_data, trained_on
from hf_crystal.training.property_recipe import TrainingRecipe


def domain_of(checkpoint: Path, table: str) -> dict[str, Any]:
    """Config fields of a checkpoint, from the rows that its recipe names."""
    metrics = json.loads((checkpoint / "metrics.json").read_text(encoding="utf-8"))
    recipe = metrics["recipe"]
    seed = recipe["training"]["seed"]
    recipe["data"]["path"] = table
    if (checkpoint / "tokenizer.json").is_file():
        _, tokenizer = load_generator(checkpoint)
        data = dataclasses.replace(GeneratorDataArguments(**recipe["data"]), max_validation_rows=1, max_test_rows=1)
        rows = load_crystal_dataset(table, split_column=data.split_column)[data.train_split]
        if len(rows) == metrics["rows"]["train"]:  # each had a sequence, so that none need be written again
            return trained_on(rows)
        with tempfile.TemporaryDirectory() as folder:
            rows = tokenize_splits(data, tokenizer, Path(folder, "tokens"), seed)["train"]
            count, fields = len(rows), training_domain(element_blocks(rows, tokenizer))
    else:
        rows = load_property_data(TrainingRecipe.from_dict(recipe).data, seed)["train"]
        count, fields = len(rows), trained_on(rows)
    if count != metrics["rows"]["train"]:
        raise ValueError(f"{table}: {count} training crystals; {checkpoint} was trained on {metrics['rows']['train']}")
    return {name: value for name, value in fields.items() if value is not None}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder with config.json and metrics.json")
    parser.add_argument("table", help="table that was trained on")
    args = parser.parse_args()
    found = domain_of(args.checkpoint, args.table)
    edit_json(args.checkpoint / "config.json", found)
    print(f"{args.checkpoint.name}: {len(found['trained_elements'])} elements")
