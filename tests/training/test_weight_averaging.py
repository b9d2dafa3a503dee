import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from hf_crystal.training import AveragedWeights, SWACallback


def wandering_model(dtype, steps):
    """A model and the states it passes through."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).to(dtype)

    def walk():
        for _ in range(steps):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter))
            yield {name: p.detach().clone() for name, p in model.named_parameters()}

    return model, walk()


def test_equals_torch_averaged_model_and_the_plain_mean():
    model, walk = wandering_model(torch.float64, 9)
    ours, theirs, states = AveragedWeights(model), AveragedModel(model), []
    for state in walk:
        ours.update(model)
        theirs.update_parameters(model)
        states.append(state)
    assert ours.count == 9
    for name, parameter in theirs.module.named_parameters():
        np.testing.assert_allclose(ours.mean[name], parameter.detach(), rtol=1e-14, atol=1e-15)
        np.testing.assert_allclose(
            ours.mean[name], torch.stack([s[name] for s in states]).mean(0), rtol=1e-13, atol=1e-14
        )


def test_mean_of_many_float32_steps_keeps_its_digits():
    """In float32 the running mean would stall: this drift is invisible to it but not to the plain mean."""
    parameter = torch.nn.Parameter(torch.ones(1))
    holder = torch.nn.ParameterList([parameter])
    averaged = AveragedWeights(holder)
    total = 0.0
    for step in range(20_000):
        with torch.no_grad():
            parameter.fill_(1 + 1e-6 * step)
        total += parameter.item()
        averaged.update(holder)
    assert float(averaged.mean["0"]) == pytest.approx(total / 20_000, abs=1e-12)


def test_applied_weights_are_put_back_bit_for_bit():
    model, walk = wandering_model(torch.float32, 3)
    averaged = AveragedWeights(model)
    for _ in walk:
        averaged.update(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="inside"), averaged.applied_to(model):
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, averaged.mean[name].float())
        raise RuntimeError("inside")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_saved_mean_continues_exactly(tmp_path):
    model, walk = wandering_model(torch.float32, 8)
    whole = AveragedWeights(model)
    resumed = None
    for index, _ in enumerate(walk):
        whole.update(model)
        if resumed is not None:
            resumed.update(model)
        if index == 4:
            whole.save(tmp_path / "swa.safetensors", start_step=17)
            resumed = AveragedWeights(model)
            assert resumed.load(tmp_path / "swa.safetensors") == 17
    assert resumed.count == whole.count == 8
    for name, mean in whole.mean.items():
        assert torch.equal(mean, resumed.mean[name])


def test_mean_of_another_model_is_refused(tmp_path):
    model, _ = wandering_model(torch.float32, 0)
    AveragedWeights(model).save(tmp_path / "swa.safetensors", start_step=0)
    with pytest.raises(ValueError, match="only in the file.*1.weight"):
        AveragedWeights(model[0]).load(tmp_path / "swa.safetensors")


def test_negative_epochs_are_refused():
    with pytest.raises(ValueError, match="swa_epochs=-1"):
        SWACallback(-1)
