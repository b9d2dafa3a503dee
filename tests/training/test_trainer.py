import math

import numpy as np
import pyarrow
import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from hf_crystal.evaluation.property_report import predict_rows
from hf_crystal.training import CrystalTrainer, CrystalTrainingArguments, last_complete_checkpoint
from hf_crystal.training.run_control import COMPLETE_MARKER_NAME


def curve(trainer, key="loss"):
    return [entry[key] for entry in trainer.state.log_history if "loss" in entry]


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_training_learns_and_reports_physical_units(make_trainer):
    trainer, task = make_trainer(
        "training.num_train_epochs=80", "training.swa_epochs=10", "training.learning_rate=0.005"
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for target in ("energy", "gap"):
        assert after[f"eval_mae_{target}"] < 0.6 * before[f"eval_mae_{target}"]
        assert after[f"eval_mae_{target}"] < 0.6 * after[f"eval_mae_mean_predictor_{target}"]
    predictions, labels = predict_rows(task.model, task.splits["validation"], task.collator, batch_size=3)
    known = ~np.isnan(labels[:, 1])
    assert after["eval_mae_gap"] == pytest.approx(np.abs(predictions - labels)[known, 1].mean(), rel=1e-5)
    assert after["eval_mae_energy"] == pytest.approx(np.abs(predictions - labels)[:, 0].mean(), rel=1e-5)


def test_rows_of_a_training_stay_on_disk(make_trainer):
    """Memory-mapped, also after rows without a label were left out: a table may be larger than memory."""
    held = pyarrow.total_allocated_bytes()
    _, task = make_trainer("data.targets=[{name: gap, unit: eV}]", "data.max_train_rows=20")
    assert {name: len(rows) for name, rows in task.splits.items()} == {"train": 20, "validation": 7, "test": 9}
    assert all(rows.cache_files for rows in task.splits.values())
    table = task.splits["train"].data.nbytes
    assert pyarrow.total_allocated_bytes() - held < table / 2


def test_eval_loss_is_the_mean_over_known_labels_of_all_rows(make_trainer):
    """11 rows in batches of 4 with missing labels: the mean of batch means would be another number."""
    trainer, task = make_trainer()
    trainer.calibrate()
    reported = trainer.evaluate()["eval_loss"]
    predictions, labels = predict_rows(task.model, task.splits["validation"], task.collator)
    errors = np.abs(predictions - labels) / np.array(task.scaling.std)
    assert reported == pytest.approx(np.nanmean(errors), rel=1e-5)
    assert abs(reported - np.mean([np.nanmean(errors[i : i + 4]) for i in (0, 4, 8)])) > 1e-3


def test_label_of_minus_100_counts(make_trainer):
    """-100 marks padding in transformers; here it is an energy like any other."""
    trainer, task = make_trainer()
    rows = [{**row, "energy": -100.0, "gap": None} for row in task.splits["validation"]]
    trainer.calibrate()
    with pytest.raises(ValueError, match="target 'gap': none of the 11 rows"):
        trainer.evaluate(rows)
    rows[0]["gap"] = 1.0
    assert trainer.evaluate(rows)["eval_mae_energy"] > 90


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_gives_the_large_batch(make_trainer, accumulation):
    whole, whole_task = make_trainer("training.dtype=float64", folder="whole")
    parts, parts_task = make_trainer(
        "training.dtype=float64", f"training.gradient_accumulation_steps={accumulation}", folder="parts"
    )
    whole.train()
    parts.train()
    # with missing labels the micro-batches weigh differently; an unweighted mean misses by percents
    np.testing.assert_allclose(curve(parts), curve(whole), rtol=2e-6)
    np.testing.assert_allclose(curve(parts, "grad_norm"), curve(whole, "grad_norm"), rtol=1e-9)
    for name, value in whole_task.model.state_dict().items():
        torch.testing.assert_close(parts_task.model.state_dict()[name], value, rtol=1e-8, atol=1e-11)


def test_last_incomplete_group_is_a_mean_too(make_trainer):
    """42 rows, nothing dropped: the last step of an epoch has 2 rows; its loss is still a mean of known labels."""
    trainer, _ = make_trainer(
        "training.drop_last_train_rows=false", "training.num_train_epochs=1", "training.gradient_accumulation_steps=4"
    )
    trainer.train()
    losses = curve(trainer)
    assert len(losses) == 6
    assert 0.2 < losses[-1] / losses[-2] < 5


def test_calibration_is_the_same_for_every_split_of_the_first_batch(make_trainer):
    calibrations = []
    for accumulation in (1, 4):
        trainer, task = make_trainer(f"training.gradient_accumulation_steps={accumulation}", folder=f"a{accumulation}")
        assert not task.model.is_calibrated
        trainer.calibrate()
        assert task.model.is_calibrated
        calibrations.append({k: v.clone() for k, v in task.model.state_dict().items() if "calibration" in k})
        trainer.calibrate()  # a second call changes nothing
        assert_equal_weights(
            calibrations[-1], {k: v for k, v in task.model.state_dict().items() if "calibration" in k}
        )
    for name in calibrations[0]:
        torch.testing.assert_close(calibrations[0][name], calibrations[1][name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("model_type", ["crystalformer", "crystalframer"])
@pytest.mark.parametrize("checkpoint", [6, 15, 18])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_from_any_checkpoint_ends_bit_equal(make_trainer, tmp_path, model_type, checkpoint, optimizer):
    """Checkpoint 6 is inside an epoch, 15 on the border where averaging starts, 18 inside averaging."""
    overrides = [f"model.model_type={model_type}", "training.eval_steps=3", "training.save_total_limit=9"]
    overrides.append(f"training.optimizer={optimizer}")
    whole, task = make_trainer(*overrides, folder="whole")
    whole.train()
    resumed, resumed_task = make_trainer(*overrides, folder="resumed")
    resumed.train(resume_from_checkpoint=tmp_path / "whole" / f"checkpoint-{checkpoint}")
    assert_equal_weights(weights(resumed_task.model), weights(task.model))
    assert curve(resumed) == curve(whole)
    assert resumed.swa.num_averaged == whole.swa.num_averaged == 5
    ours, theirs = ([e for e in t.state.log_history if "eval_loss" in e][-1] for t in (resumed, whole))
    assert ours["eval_mae_gap"] == theirs["eval_mae_gap"]


def test_torn_checkpoint_is_passed_over(make_trainer, tmp_path):
    trainer, _ = make_trainer("training.eval_steps=5", "training.save_total_limit=9")
    trainer.train()
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-20"
    (tmp_path / "run" / "checkpoint-20" / COMPLETE_MARKER_NAME).unlink()
    (tmp_path / "run" / "checkpoint-20" / "model.safetensors").write_bytes(b"torn")
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-15"
    again, _ = make_trainer("training.eval_steps=5", "training.save_total_limit=9")
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 20
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-20"


def test_resume_without_a_checkpoint_says_so(make_trainer):
    trainer, _ = make_trainer()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        trainer.train(resume_from_checkpoint=True)


def test_averaging_covers_the_last_epochs_and_only_parameters(make_trainer):
    seen = []

    class Recorder(CrystalTrainer):
        def training_step(self, *args, **kwargs):
            seen.append(weights(self.model))
            return super().training_step(*args, **kwargs)

    _, task = make_trainer("training.swa_epochs=2")
    base, _ = make_trainer("training.swa_epochs=2", folder="other")
    trainer = Recorder(
        model=task.model,
        args=base.args,
        data_collator=task.collator,
        train_dataset=task.splits["train"],
        eval_dataset=task.splits["validation"],
    )
    trainer.train()
    # 20 steps, the last 10 averaged: weights at the beginning of steps 12..20, and the last ones
    assert (trainer.swa.start_step, trainer.swa.num_averaged) == (10, 10)
    for name, mean in trainer.swa.averaged.mean.items():
        last = 10 * mean - sum(state[name].double() for state in seen[11:])
        step = (last - seen[-1][name].double()).abs().max()
        assert step < 0.02, name  # one optimizer step away from the weights before it
        assert torch.equal(task.model.state_dict()[name], mean.float())


def test_validation_during_averaging_uses_the_mean_and_puts_the_weights_back(make_trainer):
    trainer, task = make_trainer("training.swa_epochs=4")
    evaluated = []
    original = trainer.prediction_step

    def spy(*args, **kwargs):
        evaluated.append((weights(trainer.model), trainer.swa.averaged.mean["head.dense.weight"].float()))
        return original(*args, **kwargs)

    trainer.prediction_step = spy
    trainer.train()
    for state, mean in evaluated:
        assert torch.equal(state["head.dense.weight"], mean)
    assert len(evaluated) == 4 * 3


def test_checkpoints_keep_raw_weights_and_save_model_the_mean(make_trainer, tmp_path):
    from safetensors.torch import load_file

    trainer, task = make_trainer("training.swa_epochs=2")
    trainer.train()
    raw = load_file(tmp_path / "run" / "checkpoint-20" / "model.safetensors")
    mean = load_file(tmp_path / "run" / "checkpoint-20" / "swa_state.safetensors")
    assert not torch.equal(raw["head.dense.weight"], mean["head.dense.weight"].float())
    trainer.save_model(str(tmp_path / "final"))
    assert torch.equal(
        load_file(tmp_path / "final" / "model.safetensors")["head.dense.weight"], mean["head.dense.weight"].float()
    )


def test_wall_budget_ends_with_a_checkpoint_an_evaluation_and_a_mean(make_trainer, tmp_path, monkeypatch):
    """A clock that ticks one second per step and a budget of 12 seconds, a quarter of it for averaging."""
    trainer, _ = make_trainer("training.num_train_epochs=1000", "training.swa_epochs=250", max_hours=12 / 3600)
    monkeypatch.setattr(type(trainer.clock), "seconds_used", property(lambda self: float(trainer.state.global_step)))
    trainer.train()
    assert trainer.state.global_step == 12
    assert (trainer.swa.start_step, trainer.swa.num_averaged) == (9, 3)
    assert trainer.lr_scheduler.frozen_at == 9
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-12"
    assert [e["step"] for e in trainer.state.log_history if "eval_loss" in e][-1] == 12


def test_run_without_a_budget_can_be_resumed_with_one(make_trainer, tmp_path, monkeypatch):
    """Stopped by hand after 6 steps, then given 12 seconds in all: the mean is over the last quarter of them."""

    class StopByHand(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = control.should_save = state.global_step == 6

    settings = ["training.num_train_epochs=1000", "training.swa_epochs=250", "training.eval_steps=100"]
    stopped, _ = make_trainer(*settings, callbacks=[StopByHand()])
    stopped.train()
    assert (stopped.state.global_step, stopped.swa.num_averaged) == (6, 0)
    resumed, _ = make_trainer(*settings, max_hours=12 / 3600)
    monkeypatch.setattr(type(resumed.clock), "seconds_used", property(lambda self: float(resumed.state.global_step)))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 12
    assert (resumed.swa.start_step, resumed.swa.num_averaged) == (9, 3)


def test_time_before_a_resume_counts(make_trainer, tmp_path):
    trainer, _ = make_trainer("training.num_train_epochs=2")
    trainer.train()
    used = trainer.clock.seconds_used
    again, _ = make_trainer("training.num_train_epochs=4", max_hours=100.0)
    again.train(resume_from_checkpoint=True)
    assert again.clock.seconds_before == pytest.approx(used, rel=0.5)
    assert again.clock.seconds_used > again.clock.seconds_before > 0


def test_atom_budget_batches(make_trainer):
    trainer, task = make_trainer("training.max_atoms_per_batch=12", "training.num_train_epochs=2")
    trainer.train()
    sizes = task.splits["train"]["num_atoms"]
    for batch in trainer.train_batch_sampler:
        assert len(batch) * max(sizes[row] for row in batch) <= 12
    assert trainer.state.global_step == 2 * len(trainer.train_batch_sampler)
    assert all(math.isfinite(loss) for loss in curve(trainer))


def test_best_validation_checkpoint_without_averaging(make_trainer):
    trainer, _ = make_trainer("training.swa_epochs=0", "training.num_train_epochs=6", "training.learning_rate=0.05")
    trainer.train()
    scores = {e["step"]: e["eval_scaled_mae"] for e in trainer.state.log_history if "eval_loss" in e}
    assert trainer.state.best_global_step == min(scores, key=scores.get)
    assert trainer.evaluate()["eval_scaled_mae"] == pytest.approx(min(scores.values()), rel=1e-6)


def test_divergence_is_not_hidden(make_trainer):
    trainer, task = make_trainer("training.num_train_epochs=1")
    with torch.no_grad():
        task.model.head.out_proj.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="predictions are not finite"):
        trainer.train()
    assert math.isnan(curve(trainer)[0])


def test_arguments_that_would_mislead_are_refused(make_trainer, tmp_path):
    for options, message in (
        ({"dataloader_drop_last": True}, "drops rows of the evaluation"),
        ({"train_sampling_strategy": "group_by_length"}, "a resumed run would differ"),
        ({"save_total_limit": 1}, "save_total_limit=1"),
    ):
        with pytest.raises(ValueError, match=message):
            CrystalTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
    with pytest.raises(TypeError, match="expected CrystalTrainingArguments"):
        CrystalTrainer(model=torch.nn.Linear(1, 1), args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    trainer, _ = make_trainer("training.num_train_epochs=2")
    trainer.swa.swa_epochs = 3
    with pytest.raises(ValueError, match="swa_epochs=3 is more than num_train_epochs=2"):
        trainer.train()


def test_fine_tuning_keeps_encoder_and_calibration(make_trainer, tmp_path):
    """From two targets to one: encoder and the target's row of the head are the pretrained ones, bit for bit."""
    trainer, task = make_trainer()
    trainer.train()
    task.model.save_pretrained(tmp_path / "pretrained")
    tuned, tuned_task = make_trainer(
        f"model.pretrained={tmp_path / 'pretrained'}", "data.targets=[{name: gap, unit: eV}]", folder="tuned"
    )
    assert torch.equal(tuned_task.model.head.out_proj.weight, task.model.head.out_proj.weight[1:])
    before, after = task.model.encoder.state_dict(), tuned_task.model.encoder.state_dict()
    assert_equal_weights(before, after)
    assert tuned_task.model.is_calibrated
    assert (tuned_task.model.config.target_names, tuned_task.model.config.target_units) == (["gap"], ["eV"])
    tuned.train()
    after = tuned_task.model.encoder.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "calibration" not in name}
    with pytest.raises(ValueError, match="gap of .* is in 'eV' in the checkpoint, not in 'meV'"):
        make_trainer(f"model.pretrained={tmp_path / 'pretrained'}", "data.targets=[{name: gap, unit: meV}]")


def test_head_is_kept_for_the_same_targets_and_new_for_as_many_others(make_trainer, tmp_path):
    trainer, task = make_trainer("training.num_train_epochs=1", "training.swa_epochs=0")
    trainer.train()
    task.model.save_pretrained(tmp_path / "pretrained")
    source = f"model.pretrained={tmp_path / 'pretrained'}"
    _, same = make_trainer(source)
    assert_equal_weights(task.model.state_dict(), same.model.state_dict())
    others = "[{name: volume, unit: A3, column: gap}, {name: heat, unit: K, column: energy}]"
    _, other = make_trainer(source, f"data.targets={others}")
    assert_equal_weights(task.model.encoder.state_dict(), other.model.encoder.state_dict())
    for name, weight in other.model.head.named_parameters():
        assert not torch.equal(weight, task.model.head.get_parameter(name)), name
    assert other.model.config.id2label == {0: "volume", 1: "heat"}
    mean, spread = task.model.head.target_mean, task.model.head.target_std
    torch.testing.assert_close(other.model.head.target_mean, mean.flip(0))
    torch.testing.assert_close(other.model.head.target_std, spread.flip(0))


def test_recipe_that_contradicts_the_pretrained_model_is_refused(make_trainer, tmp_path):
    _, task = make_trainer()
    task.model.save_pretrained(tmp_path / "pretrained")
    source = f"model.pretrained={tmp_path / 'pretrained'}"
    with pytest.raises(ValueError, match="model.hidden_size=32: the pretrained model .* has 16"):
        make_trainer(source, "model.hidden_size=32")


def test_bfloat16_follows_float32(make_trainer):
    half, _ = make_trainer("training.bf16=true", folder="half")
    full, _ = make_trainer(folder="full")
    half.train()
    full.train()
    assert curve(half) != curve(full)
    np.testing.assert_allclose(curve(half), curve(full), rtol=0.1)


def test_several_gpus_in_one_process_are_refused(make_trainer, monkeypatch):
    trainer, task = make_trainer()
    monkeypatch.setattr(type(trainer.args), "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="sees 2 GPUs: start one process per GPU with torchrun"):
        CrystalTrainer(model=task.model, args=trainer.args)
