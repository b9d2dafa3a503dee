"""Small random models and crystals for tests of what surrounds the models."""

from pathlib import Path

import torch

import hf_crystal

NACL = {
    "lattice": [[0.0, 2.8203, 2.8203], [2.8203, 0.0, 2.8203], [2.8203, 2.8203, 0.0]],
    "frac_coords": [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]],
    "atomic_numbers": [11, 17],
}
SRTIO3 = {
    "lattice": [[3.9051, 0.0, 0.0], [0.0, 3.9051, 0.0], [0.0, 0.0, 3.9051]],
    "frac_coords": [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]],
    "atomic_numbers": [38, 22, 8, 8, 8],
}
IRON = {
    "lattice": [[2.8664, 0.0, 0.0], [0.0, 2.8664, 0.0], [0.0, 0.0, 2.8664]],
    "frac_coords": [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]],
    "atomic_numbers": [26, 26],
}
WITH_ERROR_HEAD = {"gap_target": "band_gap", "error_head_size": 8}
OVERLAPPING = {**NACL, "frac_coords": [[0.0, 0.0, 0.0], [0.001, 0.0, 0.0]]}


def tiny_model(architecture: str = "crystalformer", seed: int = 0, **changes):
    """Random property model with two targets, 16 wide, calibrated so that its outputs differ between crystals."""
    name = {"crystalformer": "Crystalformer", "crystalframer": "CrystalFramer"}[architecture]
    torch.manual_seed(seed)
    settings = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_radial_basis": 8,
        "head_hidden_size": 16,
        "target_names": ["formation_energy", "band_gap"],
        "target_units": ["eV/atom", "eV"],
    }
    config = getattr(hf_crystal, f"{name}Config")(**{**settings, **changes})
    model = getattr(hf_crystal, f"{name}ForPropertyPrediction")(config).eval()
    model.set_target_scaling(torch.tensor([-1.5, 1.0]), torch.tensor([1.0, 1.5]))
    with torch.no_grad():
        model.calibrate(**hf_crystal.CrystalFeatureExtractor()([NACL, SRTIO3, IRON]))
    return model


def save_tiny_model(folder: Path, architecture: str = "crystalformer", seed: int = 0, **changes) -> Path:
    """Write a tiny model and a feature extractor, as training does."""
    tiny_model(architecture, seed, **changes).save_pretrained(folder)
    hf_crystal.CrystalFeatureExtractor().save_pretrained(folder)
    return folder
