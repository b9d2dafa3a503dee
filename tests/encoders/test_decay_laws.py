"""Decay laws against their formulas, their truncation, and heads routed between real and reciprocal space."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from test_ops_periodic_attention import BASIS, CRYSTALS, HEADS, setting
from tiny_models import NACL, SRTIO3, tiny_model
from tolerances import KERNEL

import hf_crystal
from hf_crystal.encoders import ops_decay_laws as laws
from hf_crystal.encoders import ops_periodic_attention as ops
from hf_crystal.encoders.ops_periodic_geometry import pack_atoms, radius_layouts
from hf_crystal.testing import collate
from hf_crystal.viz import plot_gates

LAWS = laws.DECAY_LAWS
MIXED = laws.heads_by_law(["vdw", "yukawa"])


def weight(law, r, length):
    """The laws as physicists write them."""
    if law == "yukawa":
        kappa = math.sqrt(2) / length
        soft = torch.sqrt(r**2 + 1 / kappa**2)
        return torch.exp(-kappa * soft) / soft
    if law == "vdw":
        return 1 / (r**6 + (math.sqrt(1.5) * length) ** 6)
    return torch.exp(-(r**2) / (2 * length**2))


@pytest.mark.parametrize("law", LAWS)
def test_laws_are_their_formulas_and_one_at_the_atom_itself(law):
    r = torch.linspace(0, 12, 50, dtype=torch.float64)
    for length in (0.8, 1.4, 1.98):
        found = laws.decay_log_weights((r / length).square()[:, None], ((law, (0,)),), 1)[:, 0]
        expected = weight(law, r, length)
        torch.testing.assert_close(found.exp(), expected / expected[0], atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("law", LAWS)
def test_slopes_are_derivatives(law):
    u = torch.tensor([0.0, 1e-20, 1e-3, 0.7, 4.0, 80.0, 1e12], dtype=torch.float64, requires_grad=True)
    groups = ((law, (0,)),)
    (expected,) = torch.autograd.grad(laws.decay_log_weights(u[:, None], groups, 1).sum(), u)
    torch.testing.assert_close(laws.decay_slopes(u.detach()[:, None], groups, 1)[:, 0], expected)


@pytest.mark.parametrize("law", LAWS)
def test_padded_images_have_no_weight_and_a_finite_slope_in_float32(law):
    u = torch.full((1, 1), 1e14)
    assert laws.decay_log_weights(u, ((law, (0,)),), 1) < -90
    assert torch.isfinite(laws.decay_slopes(u, ((law, (0,)),), 1)).all()


def integral(law, power, low, high, count=400_000):
    r = torch.linspace(low, high, count, dtype=torch.float64)
    return torch.trapezoid(weight(law, r, 1.0) * r**power, r)


@pytest.mark.parametrize(("law", "tolerance"), [("gaussian", 1e-6), ("vdw", 1e-2)])
def test_laws_have_the_same_mean_squared_distance(law, tolerance):
    assert abs(integral(law, 4, 0, 300) / integral(law, 2, 0, 300) - 3) < 3 * tolerance


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("reach", [4.5, 6.5, 9.0])
def test_share_beyond_the_radius_is_the_integral(law, reach):
    share = integral(law, 2, reach, 400) / integral(law, 2, 0, 400)
    stated = laws.tail_share(law, reach)
    # Yukawa: the bound leaves out the core; van der Waals: the grid ends at 400 lengths
    assert 0.999 * share <= stated <= 1.1 * share + 1e-12


@pytest.mark.parametrize("law", ["yukawa", "vdw"])
def test_stated_error_holds_for_sums_over_images(law):
    """log sum within the radius against three times the radius, where nine tenths of the rest are found."""
    batch = collate(CRYSTALS)
    atoms = pack_atoms(batch["attention_mask"])
    positions = batch["positions"][atoms.crystal, atoms.slot]
    for length in (1.4, 1.98):
        totals = []
        for radius in (9.0, 27.0):
            total = torch.zeros(len(positions), dtype=torch.float64)
            for layout in radius_layouts(positions, batch["cell"], atoms, radius):
                u = layout.squared_distances[..., None] / length**2
                phi = laws.decay_log_weights(u, ((law, (0,)),), 2).masked_fill(
                    ~layout.edge_mask[..., None], -torch.inf
                )
                total[layout.rows] = phi.exp().sum((1, 2))
            totals.append(total)
        missing = 1 - totals[0] / totals[1]
        # density is even on average only, and the atom itself counts in the sum and not in the integral
        ratio = missing / laws.tail_share(law, 9.0 / length)
        assert (ratio > 0.4).all() and (ratio < 1.5).all()


def test_heads_keep_their_places():
    u = torch.rand(3, 4, 5, dtype=torch.float64) * 9
    order = ["vdw", "gaussian", "vdw", "yukawa"]
    found = laws.decay_log_weights(u, laws.heads_by_law(order), 1)
    slopes = laws.decay_slopes(u, laws.heads_by_law(order), 1)
    for head, law in enumerate(order):
        own = u[:, head : head + 1]
        assert torch.equal(found[:, head : head + 1], laws.decay_log_weights(own, ((law, (0,)),), 1))
        assert torch.equal(slopes[:, head : head + 1], laws.decay_slopes(own, ((law, (0,)),), 1))
    assert laws.heads_by_law(["gaussian"] * 3) is None


@pytest.mark.parametrize("kernel", [ops.periodic_attention_reference, ops.periodic_attention])
def test_gradients_of_outputs_and_totals_by_finite_differences(kernel):
    batch = collate(CRYSTALS)
    atoms = pack_atoms(batch["attention_mask"])
    _, _, _, inputs, _, radial_weight = setting()
    leaves = [tensor.clone().requires_grad_() for tensor in (*inputs, radial_weight)]
    # off the cubic symmetry: at a tie of distances the cut-off would make finite differences meaningless
    cell = batch["cell"] + 0.01 * torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1)).double()
    positions = batch["positions"][atoms.crystal, atoms.slot].requires_grad_()

    def function(positions, query, key, value, inverse_variance, radial_weight):
        (layout,) = radius_layouts(positions, cell, atoms, 3.6)
        basis = ops.RadialBasis(BASIS, 5.0, 1.0)
        found = kernel(
            query, key, value, inverse_variance, layout, None, basis, radial_weight, laws=MIXED, wants_total=True
        )
        return found.output, found.total

    assert torch.autograd.gradcheck(function, (positions, *leaves))


def test_fast_path_equals_the_reference_for_mixed_laws():
    _, _, layout, inputs, radial, radial_weight = setting()
    found = [
        kernel(*inputs, layout, None, radial, radial_weight, laws=MIXED, wants_total=True)
        for kernel in (ops.periodic_attention_reference, ops.periodic_attention)
    ]
    for name in ("output", "edge_weights", "pair_weights", "total"):
        reference, fast = (getattr(result, name) for result in found)
        assert (reference - fast).abs().max() <= KERNEL * reference.abs().max(), name


def predictions(model, **options):
    with torch.no_grad():
        return model(**hf_crystal.CrystalFeatureExtractor(float_dtype="float64")([NACL, SRTIO3]), **options)


def test_naming_the_default_law_changes_no_bit():
    expected = predictions(tiny_model().double()).logits
    assert torch.equal(predictions(tiny_model(decay=["gaussian"] * HEADS).double()).logits, expected)


def routed_model(gate, **changes):
    model = tiny_model(domain="multihead", routing="learned", **changes).double()
    for layer in model.encoder.layers:
        torch.nn.init.constant_(layer.attention.routing_gate, gate)
    return model


@pytest.mark.parametrize(("gate", "domain"), [(60.0, "real"), (-60.0, "reciprocal")])
def test_an_open_gate_is_a_head_of_one_space(gate, domain):
    routed = routed_model(gate)
    weights = {name: value for name, value in routed.state_dict().items() if "routing_gate" not in name}
    if domain == "reciprocal":
        weights = {name: value for name, value in weights.items() if "value_radial" not in name}
    other = tiny_model(domain=domain).double()
    other.load_state_dict(weights)
    found, expected = (predictions(model, output_attentions=True) for model in (routed, other))
    assert (found.logits - expected.logits).abs().max() <= KERNEL
    for mine, theirs in zip(found.attentions, expected.attentions, strict=True):
        assert (mine - theirs).abs().max() <= KERNEL


def test_equal_weights_in_both_spaces_need_no_gate():
    """By Poisson summation: with one width for both, every gate gives the same weights (without the values' part)."""
    outputs = []
    for gate in (-1.0, 0.0, 2.0):
        changes = {"num_radial_basis": 0, "real_scale": 1.5, "reciprocal_scale": 1.5, "cutoff_sigmas": 6.5}
        model = routed_model(gate, **changes)
        for layer in model.encoder.layers:
            torch.nn.init.zeros_(layer.attention.width_query)  # rho = 1 for every atom
            torch.nn.init.zeros_(layer.attention.width_calibration)
        outputs.append(predictions(model, output_attentions=True).attentions)
    for other in outputs[1:]:
        for mine, theirs in zip(other, outputs[0], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)  # the reciprocal sum stops at 1e-6
            torch.testing.assert_close(mine.sum(-1)[:, :, :2], torch.ones(2, HEADS, 2).double())


def test_gates_begin_near_the_fixed_heads_and_are_loaded_as_they_were(tmp_path):
    model = tiny_model(domain="multihead", routing="learned")
    torch.testing.assert_close(model.routing_gates, torch.tensor([[3.0, -3.0]] * 2).sigmoid())
    torch.nn.init.constant_(model.encoder.layers[1].attention.routing_gate, 0.3)
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path).routing_gates, model.routing_gates)


def test_gates_can_be_read_and_plotted():
    gates = routed_model(0.0).routing_gates
    assert torch.equal(gates, torch.full((2, HEADS), 0.5).double())
    figure = plot_gates({"formation_energy": gates, "band_gap": 1 - 0.2 * gates})
    assert [axes.get_title() for axes in figure.axes[:2]] == ["formation energy", "band gap"]
    with pytest.raises(ValueError, match="routing='fixed'"):
        _ = tiny_model(domain="multihead").routing_gates
    with pytest.raises(ValueError, match="shape"):
        plot_gates({"band_gap": [0.1, 0.2]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": "coulomb"}, r"decay='coulomb': \['coulomb'\] are none of the laws"),
        ({"decay": ["gaussian", "morse"]}, r"\['morse'\] are none of the laws"),
        ({"decay": ["vdw"] * 3}, "one law, or num_attention_heads=2"),
        ({"decay": "vdw", "domain": "reciprocal"}, "needs images in real space"),
        ({"decay": "vdw", "image_selection": "cells"}, "chosen by radius"),
        ({"decay": ["gaussian", "vdw"], "domain": "multihead"}, "last 1 heads are in reciprocal space"),
        ({"routing": "learned"}, "needs domain='multihead'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_model(**changes)


def test_configuration_states_its_error():
    shares = hf_crystal.CrystalformerConfig(decay=["gaussian"] * 4 + ["yukawa"] * 2 + ["vdw"] * 2).truncation_shares
    assert shares == {law: laws.tail_share(law, 4.5) for law in LAWS}
    assert hf_crystal.CrystalformerConfig().truncation_shares == {"gaussian": laws.tail_share("gaussian", 4.5)}
