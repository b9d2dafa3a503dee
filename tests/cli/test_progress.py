"""The progress bar: on a terminal, after two seconds, on standard error; nothing otherwise."""

import io
import itertools
import logging
import re
from types import SimpleNamespace

import rich.console
import torch
from rich.console import Console
from tiny_models import IRON, NACL, SRTIO3, tiny_model

from hf_crystal import (
    CrystalCollator,
    CrystalFeatureExtractor,
    CrystalGenerationPipeline,
    Mat2SeqForCausalLM,
    Mat2SeqTokenizer,
)
from hf_crystal.cli import evaluate, progress
from hf_crystal.evaluation.property_report import predict_rows
from hf_crystal.mat2seq.modeling_mat2seq import mat2seq_config


def run(monkeypatch, seconds_per_item: float, is_terminal: bool, done: int = 0) -> str:
    """Track ten items on a clock of our own; what was written to the console."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=100)
    monkeypatch.setattr(rich.console, "Console", lambda stderr: console)
    clock = itertools.count(0.0, seconds_per_item)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert list(progress.track(range(10 - done), 10, "crystal", done=done)) == list(range(10 - done))
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())  # without colors and movements


def test_a_long_run_shows_count_rate_and_remaining_time(monkeypatch):
    shown = run(monkeypatch, 1.0, is_terminal=True)
    assert "10/10 crystals" in shown
    assert "1 crystal/s" in shown


def test_a_short_run_and_a_log_file_show_nothing(monkeypatch):
    assert run(monkeypatch, 0.01, is_terminal=True) == ""
    assert run(monkeypatch, 1.0, is_terminal=False) == ""


def test_what_an_earlier_run_did_counts_as_done(monkeypatch):
    assert "10/10 crystals" in run(monkeypatch, 1.0, is_terminal=True, done=6)


def test_generation_tells_how_many_crystals_there_are():
    tokenizer = Mat2SeqTokenizer()
    torch.manual_seed(0)
    model = Mat2SeqForCausalLM(mat2seq_config("tiny", tokenizer, max_position_embeddings=300))
    told: list[int] = []
    pipe = CrystalGenerationPipeline(model=model, tokenizer=tokenizer, task="crystal-generation")
    found = pipe("NaCl", num_return_sequences=3, batch_size=2, seed=0, unique=False, progress=told.append)
    assert told == [1, 2, 3]
    assert len(found) == 3


def test_evaluation_tells_how_many_crystals_are_done():
    told: list[int] = []
    rows = [{**crystal, "energy": 0.0} for crystal in (NACL, SRTIO3, IRON)]
    collator = CrystalCollator(CrystalFeatureExtractor(), label_names=["energy", "energy"])
    predicted, _ = predict_rows(tiny_model(), rows, collator, batch_size=2, progress=told.append)
    assert (told, predicted.shape) == ([2, 3], (3, 2))


def test_steps_of_a_long_evaluation_are_told_once_on_standard_error(capsys, monkeypatch):
    logger = logging.getLogger("hf_crystal")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logger.level)
    evaluate._tell_steps()
    evaluate._tell_steps()
    logging.getLogger("hf_crystal.training").info("matching sampled")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "matching sampled\n")
