"""What the tests of exports share: figures, a small generator, a process without the package."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch

from hf_crystal.hub import export_check

METRICS = {
    "rows": {"train": 100, "validation": 10, "test": 20},
    "training_seconds": 12.5,
    "seed": 7,
    "test": {
        "targets": [
            {
                "name": name,
                "unit": unit,
                "n": 20,
                "mae": mae,
                "mae_interval": [mae - 0.01, mae + 0.01],
                "rmse": 2 * mae,
                "r2": 0.5,
                "baseline_mae": 3 * mae,
                "baseline_mean": 0.0,
            }
            for name, unit, mae in (("formation_energy", "eV/atom", 0.1234), ("band_gap", "eV", 0.5678))
        ]
    },
}
GENERATOR_METRICS = {
    "recipe": {"description": "three crystals", "data": {"conditions": {"band_gap": "gap"}}},
    "git_commit": "0123abcd",
    "rows": {"train": 3},
    "test": {"answer": {"nats_per_token": 2.5, "crystals": 3}},
    "generation": [
        {
            "protocol": {"n": 1, "temperature": 1.0, "matcher": {"ltol": 0.3}},
            "split": "test",
            "samples": 40,
            "decoded": 40,
            "match_rate": 0.125,
            "match_rate_interval": [0.05, 0.26],
            "rms_mean": None,
        }
    ],
}


def tiny_generator(seed: int = 0):
    """Random Llama of width 16 and its tokenizer."""
    from hf_crystal import Mat2SeqForCausalLM, Mat2SeqTokenizer
    from hf_crystal.mat2seq.modeling_mat2seq import mat2seq_config

    torch.manual_seed(seed)
    tokenizer = Mat2SeqTokenizer()
    shape = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    config = mat2seq_config("tiny", tokenizer, max_position_embeddings=256, **shape)
    return Mat2SeqForCausalLM(config).eval(), tokenizer


def save_tiny_generator(folder: Path, seed: int = 0) -> Path:
    """Write a tiny generator with its tokenizer and figures, as training does."""
    model, tokenizer = tiny_generator(seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "metrics.json").write_text(json.dumps(GENERATOR_METRICS))
    return folder


def run_without_package(
    code: str, folder: Path | str, scratch: Path, show_structures: bool = False, **environment: str
) -> subprocess.CompletedProcess:
    """Run code in a process where only torch, transformers, safetensors and numpy can be imported.

    Args:
        code: the program; `sys.argv[1]` is `folder`.
        folder: folder or repository.
        scratch: working folder.
        show_structures: let pymatgen and moyopy be imported as well.
        **environment: further environment variables.
    """
    package = str(Path(export_check.__file__).parent)
    hide = f"import sys; sys.path.insert(0, {package!r}); import export_check; del sys.path[0]; export_check.hide()"
    if show_structures:
        hide += "; export_check.show_structure_packages()"
    return subprocess.run(
        [sys.executable, "-P", "-W", "error::UserWarning", "-c", f"{hide}\n{textwrap.dedent(code)}", str(folder)],
        cwd=scratch,
        env={**os.environ, "HF_MODULES_CACHE": str(scratch / "modules"), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
