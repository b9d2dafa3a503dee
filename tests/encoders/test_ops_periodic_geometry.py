"""Images of atoms: the radius rule finds all of them, whatever the cell, and costs O(N)."""

import numpy as np
import pytest
import torch

from hf_crystal.encoders import ops_periodic_geometry as geometry
from hf_crystal.testing import DESCRIPTIONS, Crystal, collate, supercell

RADIUS = 5.3
TRICLINIC = Crystal(
    np.array([14, 8, 8]),
    np.array([[0.1, 0.2, 0.3], [1.9, -0.7, 2.2], [9.0, 4.0, -6.0]]),
    np.array([[3.1, 0.2, -0.1], [1.4, 4.2, 0.3], [-0.8, 1.1, 2.7]]),
)
NEEDLE = Crystal(np.array([29, 29]), np.array([[0.0, 0, 0], [1.2, 1.1, 14.0]]), np.diag([2.5, 2.6, 28.0]))


def layouts_of(crystals, radius=RADIUS, **options):
    batch = collate(crystals)
    atoms = geometry.pack_atoms(batch["attention_mask"])
    packed = batch["positions"][atoms.crystal, atoms.slot]
    return geometry.radius_layouts(packed, batch["cell"], atoms, radius, **options), atoms, packed


def distances_by_atom(layouts) -> dict[int, np.ndarray]:
    found = {}
    for layout in layouts:
        for row, atom in enumerate(layout.rows.tolist()):
            vectors = layout.edge_vectors[row][layout.edge_mask[row]]
            found[atom] = np.sort(vectors.norm(dim=-1).numpy())
    return found


def brute_force(crystal: Crystal, radius: float) -> list[np.ndarray]:
    grid = np.stack(np.meshgrid(*[np.arange(-9, 10)] * 3, indexing="ij"), -1).reshape(-1, 3) @ crystal.cell
    result = []
    for position in crystal.positions:
        everything = (crystal.positions[None] - position + grid[:, None]).reshape(-1, 3)
        lengths = np.linalg.norm(everything, axis=1)
        result.append(np.sort(lengths[lengths <= radius]))
    return result


@pytest.mark.parametrize("crystal", [TRICLINIC, NEEDLE], ids=["triclinic", "needle"])
def test_radius_rule_finds_every_image(crystal):
    layouts, _, _ = layouts_of([NEEDLE, crystal])
    found = distances_by_atom(layouts)
    for atom, expected in enumerate(brute_force(crystal, RADIUS)):
        np.testing.assert_allclose(found[2 + atom], expected, atol=1e-12)


@pytest.mark.parametrize("kind", [name for name in DESCRIPTIONS if "supercell" not in name])
def test_radius_rule_does_not_depend_on_the_description(kind):
    other = DESCRIPTIONS[kind](TRICLINIC, np.random.default_rng(3))
    own, new = (sorted(map(tuple, distances_by_atom(layouts_of([c])[0]).values())) for c in (TRICLINIC, other))
    assert [len(row) for row in own] == [len(row) for row in new]
    for left, right in zip(own, new, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-9)


@pytest.mark.parametrize("crystal", [TRICLINIC, NEEDLE], ids=["triclinic", "needle"])
def test_linked_cells_find_what_all_pairs_find(crystal, monkeypatch):
    large = supercell(crystal, (4, 3, 5))
    monkeypatch.setattr(geometry, "LINKED_CELL_MIN_ATOMS", 10_000)
    pairs = distances_by_atom(layouts_of([large])[0])
    monkeypatch.setattr(geometry, "LINKED_CELL_MIN_ATOMS", 1)
    linked = distances_by_atom(layouts_of([large])[0])
    for atom, expected in pairs.items():
        np.testing.assert_allclose(linked[atom], expected, atol=1e-9)


def test_parts_of_a_large_search_join(monkeypatch):
    whole = distances_by_atom(layouts_of([TRICLINIC, NEEDLE, TRICLINIC])[0])
    monkeypatch.setattr(geometry, "MAX_DISTANCE_ENTRIES", 1)
    monkeypatch.setattr(geometry, "MIN_LAYOUT_ROWS", 1)
    parts = distances_by_atom(layouts_of([TRICLINIC, NEEDLE, TRICLINIC])[0])
    assert whole.keys() == parts.keys()
    for atom, expected in whole.items():
        np.testing.assert_array_equal(parts[atom], expected)


def test_layout_vectors_lead_to_images_of_the_named_key():
    layouts, atoms, packed = layouts_of([NEEDLE, TRICLINIC])
    cells = torch.as_tensor(np.stack([NEEDLE.cell, TRICLINIC.cell]))
    for layout in layouts:
        key = layout.pair_key.gather(1, layout.edge_pair)
        difference = layout.edge_vectors - (packed[key] - packed[layout.rows][:, None])
        integers = torch.einsum("tmc,tck->tmk", difference, torch.linalg.inv(cells[atoms.crystal[layout.rows]]))
        off = (integers - integers.round()).abs()[layout.edge_mask]
        assert off.max() < 1e-9
        assert (atoms.crystal[key] == atoms.crystal[layout.rows][:, None])[layout.edge_mask].all()


def random_crystals(count: int) -> list[Crystal]:
    """Crystals of 1 to 12 atoms in cells of any shape, positions outside the cell included."""
    rng = np.random.default_rng(7)
    crystals = []
    for _ in range(count):
        cell = np.diag(rng.uniform(2.5, 9.0, 3)) + rng.uniform(-1.2, 1.2, (3, 3))
        size = int(rng.integers(1, 13))
        crystals.append(Crystal(rng.integers(1, 90, size), rng.uniform(-2, 2, (size, 3)) @ cell, cell))
    return crystals


def test_every_crystal_of_a_mixed_batch_gets_its_own_images():
    crystals = [*random_crystals(30), supercell(TRICLINIC, (4, 4, 3)), TRICLINIC]  # one above LINKED_CELL_MIN_ATOMS
    found = distances_by_atom(layouts_of(crystals)[0])
    expected = [row for crystal in crystals for row in brute_force(crystal, RADIUS)]
    assert sorted(found) == list(range(len(expected)))
    for atom, distances in enumerate(expected):
        np.testing.assert_allclose(found[atom], distances, atol=1e-9)


def test_edges_of_a_pair_and_pairs_of_a_query_follow_each_other():
    batch = collate([TRICLINIC, supercell(NEEDLE, (4, 5, 4)), NEEDLE])
    atoms = geometry.pack_atoms(batch["attention_mask"])
    packed = batch["positions"][atoms.crystal, atoms.slot]
    edges = geometry.radius_edges(packed, batch["cell"], atoms, RADIUS)
    queries = torch.unique_consecutive(edges.pair_query)
    assert sorted(queries.tolist()) == list(range(len(packed)))
    same_query = edges.pair_query[1:] == edges.pair_query[:-1]
    assert (edges.pair_key.diff()[same_query] > 0).all()
    assert edges.pair_counts.min() > 0
    assert edges.pair_counts.sum() == len(edges.vectors)
    assert edges.vectors.norm(dim=-1).max() <= RADIUS + 1e-9


def test_rows_are_sorted_by_width_and_padded_far_away(monkeypatch):
    monkeypatch.setattr(geometry, "MIN_LAYOUT_ROWS", 8)
    layouts, _, _ = layouts_of(random_crystals(12))
    counts = torch.cat([layout.edge_mask.sum(1) for layout in layouts])
    assert len(layouts) > 1
    assert (counts.diff() >= 0).all()
    for layout in layouts:
        assert layout.edge_mask.shape[1] == layout.edge_mask.sum(1).max()
        assert (layout.edge_mask.long().diff(dim=1) <= 0).all()  # real images first
        squared = layout.edge_vectors.square().sum(-1)
        torch.testing.assert_close(layout.squared_distances[layout.edge_mask], squared[layout.edge_mask])
        assert (layout.squared_distances[~layout.edge_mask] == geometry.PADDING_SQUARED_DISTANCE).all()


def test_layouts_hold_about_equally_many_images():
    crystals = random_crystals(12)
    (whole,) = layouts_of(crystals)[0]
    counts = whole.edge_mask.sum(1)
    layouts, _, _ = layouts_of(crystals, max_images=8 * int(counts.max()))
    images = [int(layout.edge_mask.sum()) for layout in layouts]
    assert len(layouts) > 2
    assert sum(images) == int(counts.sum())
    assert max(images) - min(images) <= 2 * int(counts.max())  # cut between atoms
    assert torch.equal(torch.cat([layout.rows for layout in layouts]).sort()[0], torch.arange(len(counts)))


def test_gradients_reach_positions_and_cell():
    crystals = [TRICLINIC, supercell(NEEDLE, (4, 5, 4))]
    batch = collate(crystals)
    atoms = geometry.pack_atoms(batch["attention_mask"])
    packed = batch["positions"][atoms.crystal, atoms.slot].requires_grad_()
    cell = batch["cell"].requires_grad_()
    edges = geometry.radius_edges(packed, cell, atoms, RADIUS)
    query, key = (index.repeat_interleave(edges.pair_counts) for index in (edges.pair_query, edges.pair_key))
    weights = torch.randn(edges.vectors.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad((edges.vectors * weights).sum(), (packed, cell))
    # the same from r = p_j + n·cell - p_i with the integers n found from the vectors
    with torch.no_grad():
        own_cell = cell[atoms.crystal[query]]
        integers = torch.linalg.solve(own_cell.mT, edges.vectors - packed[key] + packed[query]).round()
    vectors = packed[key] - packed[query] + torch.einsum("ek,ekc->ec", integers, cell[atoms.crystal[query]])
    torch.testing.assert_close(edges.vectors, vectors, atol=1e-9, rtol=0)
    expected = torch.autograd.grad((vectors * weights).sum(), (packed, cell))
    torch.testing.assert_close(gradients, expected, atol=1e-8, rtol=1e-8)


def test_cells_rule_lists_the_whole_box_in_order():
    batch = collate([TRICLINIC])
    atoms = geometry.pack_atoms(batch["attention_mask"])
    packed = batch["positions"][0]
    (layout,) = geometry.cells_layouts(packed, batch["cell"], atoms, torch.tensor([[1, 2, 1]]))
    assert layout.edge_mask.shape == (3, 3 * 45)
    assert layout.edge_images[0, :2].tolist() == [[-1, -2, -1], [-1, -2, 0]]
    shift = layout.edge_images[0, 7].double() @ batch["cell"][0]
    torch.testing.assert_close(layout.edge_vectors[0, 7], shift)


def test_volume_spacing_and_reciprocal_cell():
    cell = torch.as_tensor(TRICLINIC.cell)
    volume = geometry.cell_volume(cell)
    assert volume == pytest.approx(abs(np.linalg.det(TRICLINIC.cell)))
    assert geometry.cell_volume(cell[[1, 0, 2]]) == pytest.approx(float(volume))
    torch.testing.assert_close(
        cell @ geometry.reciprocal_cell(cell).T, 2 * torch.pi * torch.eye(3, dtype=torch.float64)
    )
    faces = torch.linalg.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]).norm(dim=-1)
    torch.testing.assert_close(geometry.plane_spacings(cell), volume / faces)


def test_packing_keeps_atoms_apart_from_holes_in_the_mask():
    mask = torch.tensor([[1, 0, 1], [0, 1, 0]])
    atoms = geometry.pack_atoms(mask)
    assert atoms.sizes.tolist() == [2, 1]
    values = torch.tensor([1.0, 2.0, 3.0])
    assert geometry.unpack_atoms(values, atoms).tolist() == [[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]
