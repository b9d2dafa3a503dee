"""Crystals that the tests of Mat2Seq share, and readers of the real data sets."""

from pathlib import Path

import numpy as np

from hf_crystal.mat2seq.canonical_crystal import CanonicalCrystal, CanonicalSettings, CanonicalSite
from hf_crystal.mat2seq.space_groups import space_group

DATASETS = (
    ("mp_20", "test"),
    ("perov_5", "test"),
    ("carbon_24", "test"),
    ("mpts_52", "test"),
    ("unlabelled_oqmd_alexandria_mp", None),
)


def read_records(folder: Path, name: str, split: str | None, count: int, seed: int = 0) -> list[dict]:
    """Random crystals of a data set as records."""
    import pandas

    table = pandas.read_parquet(folder / f"{name}.parquet")
    if split is not None:
        table = table[table.split == split]
    table = table.sample(min(count, len(table)), random_state=seed)
    return [
        {
            "cell": np.array(row.lattice, dtype=float).reshape(3, 3),
            "frac_coords": np.array(row.frac_coords, dtype=float).reshape(-1, 3),
            "atomic_numbers": np.array(row.atomic_numbers, dtype=np.int64),
        }
        for row in table.itertuples()
    ]


def random_crystal(number: int, generator: np.random.Generator, settings: CanonicalSettings) -> CanonicalCrystal:
    """A crystal written in space group `number`, atoms apart, at least one of them on a general position."""
    group = space_group(number)
    while True:
        lattice = _random_lattice(group.crystal_system, generator, settings)
        last = group.positions[-1].index
        chosen = [(last, 6), (int(generator.integers(len(group.positions))), 14)]
        sites = []
        for index, element in chosen:
            count = group.positions[index].num_parameters
            values = tuple(int(v) for v in generator.integers(settings.fraction_steps, size=count))
            sites.append(CanonicalSite(index, element, values))
        crystal = CanonicalCrystal(number, lattice, tuple(sites), settings)
        try:
            record = crystal.to_record()
        except ValueError:
            continue
        if _shortest_distance(record) > 0.3:
            return crystal


def _random_lattice(system: str, generator: np.random.Generator, settings: CanonicalSettings) -> tuple[int, ...]:
    lengths = (generator.uniform(6, 14, size=3) / settings.length_step).astype(int).tolist()
    angles = (generator.uniform(70, 110, size=3) / settings.angle_step).astype(int).tolist()
    return {
        "triclinic": (*lengths, *angles),
        "monoclinic": (*lengths, angles[0]),
        "orthorhombic": tuple(lengths),
        "cubic": tuple(lengths[:1]),
    }.get(system, tuple(lengths[:2]))


def _shortest_distance(record: dict) -> float:
    delta = record["frac_coords"][:, None] - record["frac_coords"][None]
    delta -= np.rint(delta)
    distance = np.linalg.norm(delta @ record["cell"], axis=-1)
    np.fill_diagonal(distance, np.inf)
    return float(distance.min())


def mirror_image(record: dict) -> dict:
    """The crystal seen in a mirror."""
    return {**record, "cell": np.asarray(record["cell"]) * np.array([1.0, 1.0, -1.0])}


def quartz() -> dict:
    """Alpha quartz, P3_221, after Levien, Prewitt and Weidner (1980)."""
    a, c = 4.916, 5.4054
    cell = np.array([[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, c]])
    x, (u, v, w) = 0.4697, (0.4135, 0.2669, 0.1191)
    silicon = [(x, 0, 2 / 3), (0, x, 1 / 3), (-x, -x, 0)]
    oxygen = [
        (u, v, w + 2 / 3), (-v, u - v, w + 1 / 3), (v - u, -u, w),
        (v, u, -w + 1 / 3), (u - v, -v, -w + 2 / 3), (-u, v - u, -w),
    ]  # fmt: skip
    return _record(cell, [14] * 3 + [8] * 6, silicon + oxygen)


def rutile() -> dict:
    """TiO2, P4_2/mnm."""
    u = 0.3053
    sites = [(0, 0, 0), (0.5, 0.5, 0.5), (u, u, 0), (-u, -u, 0), (0.5 - u, 0.5 + u, 0.5), (0.5 + u, 0.5 - u, 0.5)]
    return _record(np.diag([4.594, 4.594, 2.959]), [22, 22, 8, 8, 8, 8], sites)


def rock_salt() -> dict:
    """NaCl, Fm-3m, in its primitive cell."""
    cell = 5.6402 / 2 * (np.ones((3, 3)) - np.eye(3))
    return _record(cell, [11, 17], [(0, 0, 0), (0.5, 0.5, 0.5)])


def perovskite() -> dict:
    """SrTiO3, Pm-3m."""
    return _record(np.eye(3) * 3.905, [38, 22, 8, 8, 8], [(0, 0, 0), *(0.5 - 0.5 * np.eye(4, 3, -1))])


def baddeleyite() -> dict:
    """ZrO2, P2_1/c, after Howard, Hill and Reichert (1988)."""
    beta = np.radians(99.23)
    cell = np.array([[5.1505, 0, 0], [0, 5.2116, 0], [5.3173 * np.cos(beta), 0, 5.3173 * np.sin(beta)]])
    sites, numbers = [], []
    for number, (x, y, z) in (
        (40, (0.2754, 0.0395, 0.2083)),
        (8, (0.07, 0.3317, 0.3447)),
        (8, (0.4496, 0.7569, 0.4792)),
    ):
        sites += [(x, y, z), (-x, -y, -z), (-x, y + 0.5, 0.5 - z), (x, 0.5 - y, z + 0.5)]
        numbers += [number] * 4
    return _record(cell, numbers, sites)


def lopsided() -> dict:
    """A made-up triclinic crystal without symmetry; some of its coordinates lie on rounding boundaries."""
    cell = np.array([[3.9, 0.1, 0.2], [-0.7, 5.2, 0.3], [0.4, -1.1, 6.1]])
    return _record(cell, [3, 8, 15], [(0.1, 0.2, 0.3), (0.60025, 0.45, 0.12525), (0.25, 0.82, 0.71)])


def _record(cell: np.ndarray, numbers: list[int], sites: list) -> dict:
    return {"cell": cell, "frac_coords": np.array(sites, dtype=float), "atomic_numbers": np.array(numbers)}
