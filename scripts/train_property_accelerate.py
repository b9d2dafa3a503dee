"""The run of train_property.py as an explicit Accelerate loop, to read and to change.

    python scripts/train_property_accelerate.py scripts/recipes/crystalformer-perov5.yaml \
        --data perov_5.parquet --output-dir runs/perov5

Same recipe, rows, order, calibration, optimizer, schedule, averaging and metrics; a test holds the two loss curves
against each other. No checkpoints and no wall budget here: for those use train_property.py.
"""

import argparse
import contextlib
import itertools
import sys
import time


def make_parser() -> argparse.ArgumentParser:
    """Command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML recipe, see scripts/recipes/")
    parser.add_argument("--output-dir", required=True, help="folder of the run")
    parser.add_argument("--data", help="table of crystals")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser


def groups_of(batches, size):
    """Lists of `size` batches; the last one may be shorter."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def train_step(accelerator, model, optimizer, group, max_grad_norm):
    """One optimizer step over micro-batches; returns its loss and the gradient norm before clipping.

    The loss is the mean over all known labels of the global batch, whichever process or micro-batch holds them.
    """
    import torch

    known = torch.stack([(~batch["labels"].isnan()).sum() for batch in group])
    total = accelerator.reduce(known.sum(), reduction="sum").clamp_min(1)
    step_loss = 0.0
    for index, batch in enumerate(group):
        # gradients are averaged over processes, once, in the last backward pass
        with accelerator.no_sync(model) if index < len(group) - 1 else contextlib.nullcontext():
            loss = model(**batch).loss * known[index] * accelerator.num_processes / total
            accelerator.backward(loss)
        step_loss = step_loss + loss.detach()
    norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return float(accelerator.reduce(step_loss, reduction="mean")), float(norm)


def train(accelerator, recipe, task):
    """The whole training; returns its curve and leaves the model with the averaged weights."""
    from torch.utils.data import DataLoader

    from hf_crystal import training
    from hf_crystal.training.data_order import first_rows

    setup, rows = recipe.training, task.splits["train"]
    order = training.EpochShuffleSampler(
        len(rows), setup.seed, multiple_of=setup.batch_size if setup.drop_last_train_rows else 1
    )
    batches = training.EpochBatchSampler(order, setup.per_device_train_batch_size)
    loader = accelerator.prepare(DataLoader(rows, batch_sampler=batches, collate_fn=task.collator))

    own_model = task.model.to(accelerator.device)
    first = first_rows(batches, accelerator.num_processes * setup.gradient_accumulation_steps)
    training.calibrate_model(own_model, [rows[index] for index in first], task.collator)
    optimizer = training.build_optimizer(own_model, setup)
    model, optimizer = accelerator.prepare(own_model, optimizer)
    schedule = training.InverseSqrtSchedule(optimizer, setup.decay_steps)  # prepared, it would step once per process

    curve, averaged = [], None
    for epoch in range(setup.num_train_epochs):
        if setup.swa_epochs and epoch == setup.num_train_epochs - setup.swa_epochs:
            averaged = training.AveragedWeights(own_model)
            schedule.freeze()
        loader.set_epoch(epoch)
        model.train()
        for group in groups_of(loader, setup.gradient_accumulation_steps):
            rate = schedule.get_last_lr()[0]
            loss, norm = train_step(accelerator, model, optimizer, group, setup.max_grad_norm)
            schedule.step()
            if averaged is not None:
                averaged.update(own_model)
            curve.append({"step": len(curve) + 1, "loss": loss, "grad_norm": norm, "learning_rate": rate})
    if averaged is not None:
        averaged.copy_to(own_model)
    return curve


def score(task, split, batch_size):
    """Metrics of one split as plain values."""
    from hf_crystal.evaluation import regression_metrics
    from hf_crystal.evaluation.property_report import predict_rows

    predictions, labels = predict_rows(task.model, task.splits[split], task.collator, batch_size=batch_size)
    config = task.model.config
    return regression_metrics(
        predictions,
        labels,
        target_names=config.target_names,
        target_units=config.target_units,
        baseline_mean=task.scaling.mean,
    ).to_dict()


def main(args: argparse.Namespace) -> int:
    """Train, test, save; returns the exit code."""
    from pathlib import Path

    import torch
    from accelerate import Accelerator

    from hf_crystal.training import load_recipe
    from hf_crystal.training.property_run import prepare_property_task, save_run
    from hf_crystal.training.recipe_files import without_folders
    from hf_crystal.training.run_control import environment_record

    overrides = [*args.overrides, *([] if args.data is None else [f"data.path={args.data}"])]
    try:
        recipe = load_recipe(args.recipe, overrides)
        # before the data: it starts the process group, and one process converts the table for all
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision="bf16" if recipe.training.bf16 else "no"
        )
        task = prepare_property_task(recipe)
    except (ValueError, FileNotFoundError) as error:
        print(f"train_property_accelerate: {error}", file=sys.stderr)
        return 2
    started = time.monotonic()
    curve = train(accelerator, recipe, task)
    seconds = time.monotonic() - started
    if accelerator.is_main_process:
        scores = {
            split: score(task, split, recipe.training.per_device_eval_batch_size) for split in ("validation", "test")
        }
        record = {
            "recipe": without_folders(recipe.to_dict()),
            "seed": recipe.training.seed,
            **environment_record(),
            "steps": len(curve),
            "training_seconds": round(seconds, 1),
            "training_curve": curve,
            **scores,
        }
        save_run(recipe, task, record, Path(args.output_dir))
        for target in scores["test"]["targets"]:
            figures = f"{target['mae']:.4f} {target['unit']}; mean predictor {target['baseline_mae']:.4f}"
            print(f"test MAE {target['name']}: {figures}")
    accelerator.end_training()
    return 0


if __name__ == "__main__":
    sys.exit(main(make_parser().parse_args()))
