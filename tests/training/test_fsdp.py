"""FSDP2 with the settings of scripts/accelerate/fsdp2.yaml, on two CPU processes in place of GPUs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from script_runs import SCRIPTS, losses, run_forked, train
from transformers import Trainer

from hf_crystal import Mat2SeqForCausalLM
from hf_crystal.training.generator_recipe import GeneratorTrainingArguments
from hf_crystal.training.generator_run import _check_fsdp

SETTINGS = ["training.optimizer=adamw", "training.swa_epochs=0", "training.validity_samples=0"]


@pytest.fixture
def fsdp(monkeypatch):
    """Environment that `accelerate launch` makes of the file."""
    file = str(SCRIPTS / "accelerate" / "fsdp2.yaml")
    assert load_config_from_file(file).fsdp_config["fsdp_version"] == 2
    words = ["--config_file", file, "--num_processes", "2", "--mixed_precision", "no", "train.py"]
    arguments = _validate_launch_command(launch_command_parser().parse_args(words))[0]
    for name, value in prepare_multi_gpu_env(arguments).items():
        if name.startswith("FSDP_") or name == "ACCELERATE_USE_FSDP":
            monkeypatch.setenv(name, value)


def train_sharded(recipe, folder, *options):
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    wrapper = Path(__file__).with_name("fsdp_on_cpu.py")
    run_forked(wrapper, SCRIPTS / "train_mat2seq.py", recipe, "--output-dir", folder, *words, *options, processes=2)
    return json.loads((folder / "run.json").read_text())


@pytest.mark.slow
def test_shards_give_the_curve_of_one_process_and_resume(generator_recipe, tmp_path, request):
    one = train(generator_recipe, tmp_path / "one", *SETTINGS, script="train_mat2seq.py")
    request.getfixturevalue("fsdp")
    whole = train_sharded(generator_recipe, tmp_path / "whole")
    checkpoint = tmp_path / "whole/checkpoints/checkpoint-8"
    assert len(list(checkpoint.glob("pytorch_model_fsdp_0/*.distcp"))) == 2  # one part of the weights per process
    np.testing.assert_allclose(losses(whole), losses(one), rtol=2e-5)
    models = [Mat2SeqForCausalLM.from_pretrained(tmp_path / name / "model") for name in ("one", "whole")]
    for ours, theirs in zip(*(model.state_dict().values() for model in models), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)

    shutil.copytree(checkpoint, tmp_path / "cut/checkpoints/checkpoint-8")
    resumed = train_sharded(generator_recipe, tmp_path / "cut", "--resume")
    assert losses(resumed) == losses(whole)
    assert resumed["test"] == whole["test"]


def test_what_needs_whole_matrices_is_refused(make_trainer, monkeypatch):
    with pytest.raises(ValueError, match="training.optimizer='muon': with FSDP expected 'adamw'"):
        _check_fsdp(GeneratorTrainingArguments(optimizer="muon"))
    _check_fsdp(GeneratorTrainingArguments(validity_samples=0))
    build = Trainer.create_accelerator_and_postprocess

    def build_with_fsdp(trainer):
        build(trainer)
        trainer.is_fsdp_enabled = True

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", build_with_fsdp)
    with pytest.raises(ValueError, match="train encoders with data parallelism"):
        make_trainer()
