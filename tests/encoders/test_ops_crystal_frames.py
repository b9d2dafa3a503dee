"""Frames and the angular basis: factorised sums, ties, degenerate axes."""

import pytest
import torch
from tolerances import KERNEL, KERNEL_FLOAT32

from hf_crystal.encoders import ops_crystal_frames as frames
from hf_crystal.encoders import ops_frame_features as angular
from hf_crystal.encoders.ops_frame_features import axes_of_frames, frame_features, merge_axes, spread_axes
from hf_crystal.encoders.ops_periodic_geometry import FrameAxes


def random_rotation(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    matrix, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return matrix * torch.linalg.det(matrix).sign()


BASES = [(64, 4.0), (16, 1.0), (20, 2.0), (64, 1.0), (3, 1.0)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("num_basis", "width_scale"), BASES)
def test_series_is_the_basis(num_basis, width_scale, dtype):
    cosines = torch.linspace(-1, 1, 301, dtype=torch.float64)[None]
    series = angular.angular_series(num_basis, width_scale, dtype)
    values = torch.einsum("fnm,nk->fmk", series.functions(cosines.to(dtype)), series.matrix.to(dtype))
    tolerance = KERNEL if dtype == torch.float64 else KERNEL_FLOAT32
    assert (values - angular.angular_basis(cosines, num_basis, width_scale)).abs().max() <= tolerance


def some_axes(num_atoms: int, num_heads: int, dtype: torch.dtype) -> FrameAxes:
    """Five random lines of each atom, weighted in both directions."""
    generator = torch.Generator().manual_seed(3)
    count = 5 * num_atoms
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator).to(dtype), dim=-1)
    weight, opposite = torch.rand(2, count, num_heads, 3, generator=generator, dtype=torch.float64).to(dtype)
    return FrameAxes(torch.arange(num_atoms).repeat_interleave(5), direction, weight, opposite)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("num_basis", "width_scale"), BASES)
def test_fast_features_have_the_values_and_gradients_of_the_reference(num_basis, width_scale, dtype):
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(4, 40, 2, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    vectors = torch.nn.functional.normalize(torch.randn(4, 40, 3, generator=generator, dtype=torch.float64), dim=-1)
    vectors, axes = vectors.to(dtype), some_axes(4, 2, dtype)
    vectors[0, :3] = torch.eye(3, dtype=dtype)
    axes.direction[:3] = -torch.eye(3, dtype=dtype)
    tolerance = KERNEL if dtype == torch.float64 else KERNEL_FLOAT32
    fast, reference = (
        frame_features(weights, vectors, axes, num_basis, width_scale, reference=plain) for plain in (False, True)
    )
    assert (fast - reference).abs().max() <= tolerance * reference.abs().max()
    direction = torch.randn(fast.shape, generator=generator, dtype=torch.float64).to(dtype)
    (own,) = torch.autograd.grad((fast * direction).sum(), weights)
    (expected,) = torch.autograd.grad((reference * direction).sum(), weights)
    assert (own - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_images_below_rounding_and_uneven_numbers_of_lines_change_nothing(dtype):
    """Weights of a softmax over six orders of magnitude below rounding; atoms with 0 to 20 lines."""
    generator = torch.Generator().manual_seed(1)
    number_of_lines = torch.tensor([1, 0, 3, 9, 20])
    logits = (60 * torch.randn(5, 50, 2, generator=generator, dtype=torch.float64)).to(dtype)
    vectors = torch.nn.functional.normalize(torch.randn(5, 50, 3, generator=generator, dtype=torch.float64), dim=-1)
    axes = some_axes(7, 2, dtype)
    count = int(number_of_lines.sum())
    atom = torch.arange(5).repeat_interleave(number_of_lines)
    axes = FrameAxes(atom, axes.direction[:count], axes.weight[:count], axes.opposite[:count])
    results = []
    for plain in (False, True):
        leaf = logits.clone().requires_grad_()
        weights = torch.softmax(leaf, dim=1) * (torch.arange(5) != 2)[:, None, None]
        features = frame_features(weights, vectors.to(dtype), axes, 64, 4.0, reference=plain)
        (gradient,) = torch.autograd.grad(features.square().sum(), leaf)
        results.append((features, gradient))
    assert 0 < (torch.softmax(logits, dim=1) < torch.finfo(dtype).eps).float().mean() < 1
    tolerance = KERNEL if dtype == torch.float64 else KERNEL_FLOAT32
    for fast, reference in zip(*results, strict=True):
        assert (fast - reference).abs().max() <= tolerance * reference.abs().max()


def test_frame_features_gradient_by_finite_differences():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 6, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    vectors = torch.nn.functional.normalize(torch.randn(2, 6, 3, generator=generator, dtype=torch.float64), dim=-1)
    axes = axes_of_frames(torch.stack([random_rotation(n) for n in range(4)]).view(2, 2, 3, 3))
    assert torch.autograd.gradcheck(lambda w: frame_features(w, vectors, axes, 8, 1.5), (weights,))


def test_isotropic_basis_is_the_mean_over_the_sphere():
    cosines = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    mean = angular.angular_basis(cosines, 16, 1.5).mean(0)
    torch.testing.assert_close(angular.isotropic_angular_basis(16, 1.5, cosines), mean, atol=1e-5, rtol=0)


def test_max_frame_is_right_handed_and_takes_the_two_strongest_directions():
    vectors = torch.nn.functional.normalize(
        torch.tensor([[[1.0, 0, 0], [-1.0, 0, 0], [1.0, 2.0, 0], [0, 0, 1.0]]], dtype=torch.float64), dim=-1
    )
    scores = torch.tensor([[[3.0], [2.9], [2.5], [0.1]]], dtype=torch.float64)
    frame = frames.max_frames(scores, vectors)[0, 0]
    torch.testing.assert_close(frame, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.linalg.det(frame) == pytest.approx(1.0)


def test_without_ties_the_mean_is_the_single_frame():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(5, 9, 3, generator=generator, dtype=torch.float64), dim=-1)
    scores = torch.randn(5, 9, 2, generator=generator, dtype=torch.float64)
    axes = frames.max_axes(scores, vectors, 1e-6)
    single = axes_of_frames(frames.max_frames(scores, vectors))
    weights = torch.rand(5, 9, 2, generator=generator, dtype=torch.float64)
    left, right = (frame_features(weights, vectors, entry, 16, 1.0) for entry in (axes, single))
    torch.testing.assert_close(left, right, atol=1e-12, rtol=0)


def test_ties_give_the_mean_over_all_candidates_in_any_order_and_orientation():
    """An octahedral site: 6 first axes, 4 second axes each; 24 frames whose axes lie along 3 lines, both ways."""
    octahedron = torch.cat([torch.eye(3), -torch.eye(3)]).double()[None]
    extra = torch.nn.functional.normalize(torch.tensor([[[1.0, 2.0, 3.0]]]).double(), dim=-1)
    vectors = torch.cat([octahedron, extra], dim=1)
    scores = torch.tensor([1.0] * 6 + [-2.0]).double()[None, :, None]
    axes = frames.max_axes(scores, vectors, 1e-2)
    assert axes.direction.shape == (3, 3)
    torch.testing.assert_close(axes.weight, torch.full((3, 1, 3), 1 / 6).double())
    torch.testing.assert_close(axes.opposite, axes.weight)
    weights = torch.linspace(1, 2, 7).double()[None, :, None]
    features = frame_features(weights, vectors, axes, 16, 1.0)
    order = torch.tensor([6, 3, 1, 5, 0, 2, 4])
    turned = (vectors @ random_rotation(1).T)[:, order]
    other = frames.max_axes(scores[:, order], turned, 1e-2)
    torch.testing.assert_close(frame_features(weights[:, order], turned, other, 16, 1.0), features, atol=1e-9, rtol=0)


def test_opposite_directions_are_listed_once_and_count_as_themselves():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(1, 6, 3, generator=generator).double(), dim=-1)
    weights = torch.rand(1, 6, 1, generator=generator).double()
    one = torch.nn.functional.normalize(torch.tensor([[1.0, -2.0, 0.5]]).double(), dim=-1)
    weight = torch.zeros(4, 1, 3).double()
    weight[:, 0, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    listed = FrameAxes(
        torch.zeros(4, dtype=torch.long), torch.cat([one, -one, -one, one.flip(1)]), weight, torch.zeros_like(weight)
    )
    merged = merge_axes(listed)
    assert merged.direction.shape == (2, 3)
    left, right = (frame_features(weights, vectors, axes, 16, 1.0) for axes in (merged, listed))
    torch.testing.assert_close(left, right, atol=1e-12, rtol=0)


def test_prediction_is_continuous_where_candidates_swap():
    """The second-best candidate overtakes the best: features move by little, not by a jump."""
    vectors = torch.nn.functional.normalize(
        torch.tensor([[[1.0, 0, 0], [0.2, 1.0, 0], [0.1, 0.3, 1.0]]], dtype=torch.float64), dim=-1
    )
    weights = torch.ones(1, 3, 1, dtype=torch.float64)

    def features(gap: float) -> torch.Tensor:
        scores = torch.tensor([[[1.0], [1.0 + gap], [0.0]]], dtype=torch.float64)
        return frame_features(weights, vectors, frames.max_axes(scores, vectors, 1e-2), 16, 1.0)

    steps = [features(gap) for gap in torch.linspace(-0.02, 0.02, 401).tolist()]
    jump = max(float((b - a).abs().max()) for a, b in zip(steps, steps[1:], strict=False))
    assert jump < 0.05
    assert (steps[0] - steps[-1]).abs().max() > 0.3


def test_eigen_axes_are_the_mean_over_the_four_right_handed_signs():
    generator = torch.Generator().manual_seed(0)
    basis = random_rotation(5)
    tensor = (basis.T @ torch.diag(torch.tensor([1.0, 2.0, 4.0]).double()) @ basis)[None, None]
    vectors = torch.nn.functional.normalize(torch.randn(1, 8, 3, generator=generator).double(), dim=-1)
    weights = torch.rand(1, 8, 1, generator=generator).double()
    got = frame_features(weights, vectors, frames.eigen_axes(tensor, 1e-3), 16, 1.0)
    expected = torch.zeros_like(got)
    for signs in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)):
        frame = torch.tensor(signs).double()[:, None] * basis
        expected += frame_features(weights, vectors, axes_of_frames(frame[None, None]), 16, 1.0) / 4
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("values", [(1.0, 1.0, 3.0), (1.0, 3.0, 3.0), (2.0, 2.0, 2.0), (1.0, 1.003, 3.0)])
def test_degenerate_eigenvalues_do_not_depend_on_orientation(values):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(1, 8, 3, generator=generator).double(), dim=-1)
    weights = torch.rand(1, 8, 1, generator=generator).double()
    tensor = torch.diag(torch.tensor(values).double())
    results = []
    for seed in range(3):
        turn = random_rotation(seed)
        turned = (turn @ tensor @ turn.T)[None, None]
        axes = frames.eigen_axes(turned, 1e-2)
        results.append(frame_features(weights, vectors @ turn.T, axes, 64, 4.0))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], atol=1e-10, rtol=0)


def test_eigen_frames_are_right_handed_for_any_sign():
    tensor = torch.diag(torch.tensor([1.0, 2.0, 3.0]).double()).expand(50, 1, 3, 3)
    torch.manual_seed(0)
    drawn = frames.eigen_frames(tensor, random_signs=True)
    torch.testing.assert_close(torch.linalg.det(drawn), torch.ones(50, 1).double())
    assert len({tuple(frame.flatten().round().tolist()) for frame in drawn[:, 0]}) == 4


def test_lattice_axes_of_a_cube_are_its_edges_equally():
    vectors = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3).double()
    vectors = 4.0 * vectors[vectors.abs().sum(-1) > 0]
    axes = frames.lattice_axes([vectors], 1e-2)
    assert axes.direction.shape == (3, 3)
    torch.testing.assert_close(axes.weight + axes.opposite, torch.full((3, 1, 3), 1 / 3).double())
    first = frames.lattice_axes([vectors], 1e-9, choice="first")
    assert ((first.weight + first.opposite) > 0).sum() == 3


def test_spread_axes_gives_every_atom_and_head_its_source():
    weight = torch.arange(1.0, 10.0).double().view(3, 1, 3)
    axes = FrameAxes(torch.tensor([0, 1, 1]), torch.eye(3).double(), weight, torch.zeros_like(weight))
    spread = spread_axes(axes, torch.tensor([1, 0]), 2)
    assert spread.atom.tolist() == [0, 0, 1]
    torch.testing.assert_close(spread.direction, torch.eye(3).double()[[1, 2, 0]])
    torch.testing.assert_close(spread.weight, weight[[1, 2, 0]].expand(-1, 2, -1))
