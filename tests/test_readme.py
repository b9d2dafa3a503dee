"""README: its figures are those of the checkpoints, its commands and examples run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hf_crystal.checkpoints import embedded_checkpoints
from hf_crystal.cli.main import run

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^hf-crystal .*?(?=\s+#|$)", README, flags=re.MULTILINE)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}  # also where the package is not installed
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_figures_are_those_of_the_checkpoints():
    words = [sys.executable, "scripts/render_readme.py", "--check"]
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", COMMANDS)
def test_options_of_every_command_exist(line, capsys):
    words = shlex.split(line)[1:]
    group = 2 if words[0] in ("train", "evaluate") else 1
    options = [word for word in words if word.startswith("--")]
    assert run([*words[:group], "--help"]) == 0
    text = capsys.readouterr().out
    assert all(option in text for option in options)


def test_files_of_the_tree_exist():
    tree = README.partition("## Files")[2].partition("```\n")[2].partition("```")[0]
    for name in re.findall(r"^(?:  |)(?=\S)([\w./]+/)", tree, flags=re.MULTILINE):
        assert any((parent / name).is_dir() for parent in (ROOT, ROOT / "hf_crystal")), name


@pytest.mark.skipif(not embedded_checkpoints(), reason="this checkout has no embedded checkpoint yet")
@pytest.mark.parametrize("code", [block for block in PYTHON if "embedded" in block], ids=["predict", "encode"])
def test_example_runs(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "UNEXPECTED" not in done.stderr  # the encoder alone is loaded without a report on the head


def test_fine_tuning_example_runs_on_a_small_table(tmp_path):
    """The code of the README, on three crystals and a tiny network."""
    import pyarrow.parquet
    from tiny_models import IRON, NACL, SRTIO3

    rows = [
        {**crystal, "mb_e_form": -1.0 - index, "split": "train"}
        for index, crystal in enumerate((NACL, SRTIO3, IRON) * 43)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "mp_20.parquet")
    code = next(block for block in PYTHON if "Trainer(" in block)
    tiny = "hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_radial_basis=4, "
    code = code.replace("CrystalformerConfig(", f"CrystalformerConfig({tiny}")
    code = code.replace("remove_unused_columns=False,", "remove_unused_columns=False, max_steps=2, use_cpu=True,")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
