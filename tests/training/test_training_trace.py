"""The official training, step by step: six steps of the release on fixed crystals, in float64."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from hf_crystal.conversion import build_model, convert_state_dict, infer_config
from hf_crystal.training import RELEASE_BIAS_WEIGHT_DECAY, CrystalTrainer, CrystalTrainingArguments

STEPS = 6
# Measured: loss, rate and norm agree to 5e-12, weights to 4e-11 (Adam divides by the square root of tiny second
# moments), predictions to 1e-12.
STEP_TOLERANCE, WEIGHT_TOLERANCE, PREDICTION_TOLERANCE = 2e-11, 2e-10, 1e-11


@pytest.fixture(scope="module")
def trace(fixtures_dir):
    with np.load(fixtures_dir / "cf_train_trace.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def crystals(fixtures_dir, trace):
    """The 16 crystals of every step (8 real, 8 rattled) with their targets, as rows of tensors."""

    def rows() -> Iterator[dict]:
        with np.load(fixtures_dir / "crystals.npz") as stored:
            ends = stored["sizes"].cumsum()
            for kind in ("real", "rattled"):
                for index, end in enumerate(ends):
                    atoms = slice(end - stored["sizes"][index], end)
                    yield {
                        "atomic_numbers": torch.from_numpy(stored["Z"][atoms].astype(np.int64)),
                        "positions": torch.from_numpy(stored[f"{kind}_pos"][atoms]),
                        "cell": torch.from_numpy(stored[f"{kind}_lat"][index]),
                    }

    return [{**row, "label": torch.tensor([label])} for row, label in zip(rows(), trace["targets"], strict=True)]


def collate(rows):
    pad = torch.nn.utils.rnn.pad_sequence
    numbers = pad([row["atomic_numbers"] for row in rows], batch_first=True)
    return {
        "atomic_numbers": numbers,
        "positions": pad([row["positions"] for row in rows], batch_first=True),
        "cell": torch.stack([row["cell"] for row in rows]),
        "attention_mask": numbers.ne(0).long(),
        "labels": torch.stack([row["label"] for row in rows]),
    }


def official_state(trace, prefix):
    state = {k.removeprefix(prefix): torch.from_numpy(v).double() for k, v in trace.items() if k.startswith(prefix)}
    return {
        **state,
        "target_mean": torch.from_numpy(trace["target_mean"]),
        "target_std": torch.from_numpy(trace["target_std"]),
    }


def largest_difference(trace, prefix, weights):
    expected = convert_state_dict(official_state(trace, prefix))
    assert set(expected) == set(weights)
    return max(
        (weights[name] - value.reshape(weights[name].shape)).abs().max().item() for name, value in expected.items()
    )


class RecordingTrainer(CrystalTrainer):
    """Keeps what the log rounds to float32, and the weights after every step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = {"loss": [], "lr": [], "grad_norm": []}
        self.weights = []

    def training_step(self, *args, **kwargs):
        self.weights.append({name: value.clone() for name, value in self.model.state_dict().items()})
        self.seen["lr"].append(self.optimizer.param_groups[0]["lr"])
        loss = super().training_step(*args, **kwargs)
        self.seen["loss"].append(loss.item())
        return loss

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        self.seen["grad_norm"].append(norm.item())
        return norm


@pytest.fixture(scope="module")
def trained(trace, crystals, tmp_path_factory):
    """The same six steps by CrystalTrainer: one step per epoch, the last three averaged."""
    state = official_state(trace, "init/")
    model = build_model(state, infer_config(state, adaptive_cutoff_sigmas=None)).double()
    arguments = CrystalTrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("trace")),
        per_device_train_batch_size=len(crystals),
        num_train_epochs=STEPS,
        swa_epochs=3,
        learning_rate=5e-3,
        decay_steps=4,
        bias_weight_decay=RELEASE_BIAS_WEIGHT_DECAY,
        max_grad_norm=1.0,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = RecordingTrainer(model=model, args=arguments, data_collator=collate, train_dataset=crystals)
    assert not model.is_calibrated
    trainer.train()
    return trainer


@pytest.mark.parametrize("quantity", ["loss", "lr", "grad_norm"])
def test_every_step(trace, trained, quantity):
    np.testing.assert_allclose(trained.seen[quantity], trace[quantity], rtol=0, atol=STEP_TOLERANCE)


def test_weights_and_calibration_after_the_first_step(trace, trained):
    # recorded at the beginning of the second step
    assert largest_difference(trace, "after_step1/", trained.weights[1]) < WEIGHT_TOLERANCE


def test_calibration_before_the_first_step(trace, trained):
    expected = convert_state_dict(official_state(trace, "after_step1/"))
    for name, value in expected.items():
        if name.endswith("width_calibration"):
            np.testing.assert_allclose(trained.weights[0][name], value, rtol=0, atol=1e-12)


def test_averaged_weights(trace, trained):
    assert trained.swa.num_averaged == 3
    assert trained.swa.start_step == 3
    assert largest_difference(trace, "swa/", trained.model.state_dict()) < WEIGHT_TOLERANCE


def test_weights_after_the_last_step(trace, trained):
    """The last raw weights follow from the mean of three steps and the two before."""
    steps = {name: trained.weights[4][name] + trained.weights[5][name] for name in trained.weights[0]}
    last = {name: 3 * value - steps[name] for name, value in trained.model.state_dict().items()}
    assert largest_difference(trace, "after_step6/", last) < 10 * WEIGHT_TOLERANCE


def test_predictions_of_the_averaged_model(trace, trained, crystals):
    batch = collate(crystals)
    labels = batch.pop("labels")
    with torch.no_grad():
        scaled = trained.model.head.to_scaled(trained.model.eval()(**batch).logits)
    assert labels.shape == scaled.shape
    np.testing.assert_allclose(scaled, trace["pred_swa"], rtol=0, atol=PREDICTION_TOLERANCE)
