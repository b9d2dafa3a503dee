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
COMMANDS = re.findall(r"^hf-crystal .*?(?=\s+#| \||$)", README, flags=re.MULTILINE)
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
    reference = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    tree = reference.partition("## Files")[2].partition("```\n")[2].partition("```")[0]
    for name in re.findall(r"^(?:  |)(?=\S)([\w./]+/)", tree, flags=re.MULTILINE):
        assert any((parent / name).is_dir() for parent in (ROOT, ROOT / "hf_crystal")), name


@pytest.mark.skipif(not embedded_checkpoints(), reason="this checkout has no embedded checkpoint yet")
@pytest.mark.parametrize("code", PYTHON)
def test_example_runs(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_is_one_screen():
    before = README.partition("## License")[0].splitlines()
    assert len(before) <= 120
    assert README.count("```bash") == 4
