import math

import pytest
import torch

from hf_crystal.training import InverseSqrtSchedule


def make_schedule(decay_steps=4):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    return optimizer, InverseSqrtSchedule(optimizer, decay_steps)


def rates(optimizer, schedule, steps, freeze_before=None):
    seen = []
    for step in range(steps):
        if step == freeze_before:
            schedule.freeze()
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_rate_is_the_formula_of_finished_steps():
    optimizer, schedule = make_schedule()
    assert rates(optimizer, schedule, 6) == pytest.approx([0.5 * math.sqrt(4 / (4 + t)) for t in range(6)], rel=1e-15)


def test_frozen_rate_is_that_of_the_first_frozen_step():
    optimizer, schedule = make_schedule()
    seen = rates(optimizer, schedule, 6, freeze_before=3)
    assert seen[3] == seen[4] == seen[5] == pytest.approx(0.5 * math.sqrt(4 / 7), rel=1e-15)
    assert seen[2] > seen[3]


def test_freeze_survives_a_restart():
    optimizer, schedule = make_schedule()
    rates(optimizer, schedule, 4, freeze_before=2)
    new_optimizer, new_schedule = make_schedule()
    new_optimizer.load_state_dict(optimizer.state_dict())
    new_schedule.load_state_dict(schedule.state_dict())
    assert rates(new_optimizer, new_schedule, 3) == rates(optimizer, schedule, 3)


def test_decay_steps_must_be_positive():
    with pytest.raises(ValueError, match="decay_steps=0"):
        make_schedule(decay_steps=0)
