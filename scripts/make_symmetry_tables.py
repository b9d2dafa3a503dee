# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Write `hf_crystal/mat2seq/space_group_tables.py`: what the 230 space-group types are, one line each.

Symbols and operations come from moyopy (ITA standard setting: unique axis b, hexagonal axes for R lattices, origin
choice 2). Generators of the orientation-preserving affine normalizer are found here by search. The first coordinate
triplets of the Wyckoff positions are facts of the International Tables, read from a JSON file (number → list of
[letter, multiplicity, triplet]) and checked against moyopy wherever it keeps the setting: an atom put there must get
that letter.

    python scripts/make_symmetry_tables.py --wyckoff ../shared/fixtures/symmetry/wyckoff_table.json
"""

import argparse
import itertools
import json
from pathlib import Path

import moyopy
import numpy as np

GRID = 24  # every translation of a standard setting is a multiple of 1/24
TARGET = Path(__file__).resolve().parents[1] / "hf_crystal" / "mat2seq" / "space_group_tables.py"
HEADER = '''# ruff: noqa: E501
"""The 230 space-group types in their ITA standard settings. Written by `scripts/make_symmetry_tables.py`.

One line per type: number; short Hermann-Mauguin symbol; centering letter; generators of the group (without centering);
generators of the orientation-preserving affine normalizer modulo the group, directions without a fixed origin left
out (`*` for triclinic and monoclinic groups, whose normalizers are infinite); Wyckoff letters with their multiplicity
in the conventional cell and the first coordinate triplet.

moyopy knows these tables too. They are frozen here because letters, settings and generators define the sequence and
its vocabulary: a checkpoint must read the same crystal whatever version of a library is installed. The tests compare
them with moyopy's operations, Wyckoff letters and normalizers.
"""

__all__ = ["SPACE_GROUP_LINES"]

SPACE_GROUP_LINES = """\\
'''

Operation = tuple[tuple[int, ...], tuple[int, ...]]  # rotation, row by row; translation in 1/24


def to_xyz(operation: Operation) -> str:
    """Write an operation as `-y,x-y,z+1/3`."""
    rotation, translation = operation
    rows = []
    for i in range(3):
        text = ""
        for coefficient, name in zip(rotation[3 * i : 3 * i + 3], "xyz", strict=True):
            if coefficient:
                size = "" if abs(coefficient) == 1 else str(abs(coefficient))
                text += ("-" if coefficient < 0 else "+" if text else "") + size + name
        if translation[i] % GRID:
            divisor = int(np.gcd(translation[i], GRID))
            text += f"{'+' if text else ''}{translation[i] // divisor}/{GRID // divisor}"
        rows.append(text or "0")
    return ",".join(rows)


def standard_operations(number: int) -> tuple[set[Operation], list[tuple[int, ...]]]:
    """All operations of the conventional cell, and the centering translations."""
    operations = moyopy.operations_from_number(number, setting=moyopy.Setting.standard())
    result = set()
    for rotation, translation in zip(operations.rotations, operations.translations, strict=True):
        steps = np.asarray(translation) * GRID
        assert np.abs(steps - np.rint(steps)).max() < 1e-6, number
        result.add((tuple(int(v) for v in np.ravel(rotation)), tuple(int(v) % GRID for v in np.rint(steps))))
    identity = (1, 0, 0, 0, 1, 0, 0, 0, 1)
    return result, sorted(t for r, t in result if r == identity)


def multiply(first: Operation, second: Operation) -> Operation:
    """First ∘ second, translation modulo the cell."""
    a, b = (np.reshape(first[0], (3, 3)), np.reshape(second[0], (3, 3)))
    translation = (a @ np.asarray(second[1]) + np.asarray(first[1])) % GRID
    return tuple(int(v) for v in (a @ b).ravel()), tuple(int(v) for v in translation)


def closure(generators: list[Operation], start: set[Operation]) -> set[Operation]:
    """The smallest set that contains `start` and is closed under multiplication by the generators."""
    known, border = set(start), list(start)
    while border:
        operation = border.pop()
        for generator in generators:
            product = multiply(generator, operation)
            if product not in known:
                known.add(product)
                border.append(product)
    return known


def choose_generators(group: set[Operation], base: set[Operation]) -> list[Operation]:
    """A short list that together with `base` (a closed set) generates `group`."""
    generators: list[Operation] = []
    known = set(base)
    while len(known) < len(group):
        candidates = sorted(group - known)
        sizes = [(-len(closure([*generators, c, *base], known)), sum(map(abs, c[0])), c[1], c[0]) for c in candidates]
        chosen = candidates[sizes.index(min(sizes))]
        generators.append(chosen)
        known = closure([*generators, *base], known)
    return generators


def polar_axes(group: set[Operation]) -> list[int]:
    """Axes along which the origin is free (standard settings: always along cell axes)."""
    mean = np.mean([np.reshape(r, (3, 3)) for r, _ in group], axis=0)
    return [i for i in range(3) if abs(mean[i, i] - 1) < 1e-9]


def candidate_rotations(number: int) -> list[np.ndarray]:
    """Proper basis changes that can keep a lattice of this crystal family."""
    if 143 <= number <= 194:
        six, two = np.array([[1, -1, 0], [1, 0, 0], [0, 0, 1]]), np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])
        return [np.linalg.matrix_power(six, k) @ flip for k in range(6) for flip in (np.eye(3, dtype=int), two)]
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.zeros((3, 3), dtype=int)
            matrix[range(3), order] = signs
            if round(np.linalg.det(matrix)) == 1:
                found.append(matrix)
    return found


def normalizer(number: int, group: set[Operation], centering: list[tuple[int, ...]]) -> set[Operation]:
    """Every proper (P, p), p on the grid and 0 along polar axes, that maps the group on itself by conjugation."""
    translations_of: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for rotation, translation in group:
        translations_of.setdefault(rotation, []).append(translation)
    polar = polar_axes(group)
    steps = [[0] if i in polar else range(GRID) for i in range(3)]
    grid = np.array(list(itertools.product(*steps)))
    code = np.array([GRID * GRID, GRID, 1])
    members = choose_generators(group, {((1, 0, 0, 0, 1, 0, 0, 0, 1), t) for t in centering})
    result: set[Operation] = set()
    for basis_change in candidate_rotations(number):
        inverse = np.rint(np.linalg.inv(basis_change)).astype(int)
        shifted = {tuple(int(v) for v in inverse @ np.asarray(t) % GRID) for t in centering}
        if shifted != set(centering):
            continue
        allowed = np.ones(len(grid), dtype=bool)
        for rotation, translation in members:
            matrix = np.reshape(rotation, (3, 3))
            image = tuple(int(v) for v in (inverse @ matrix @ basis_change).ravel())
            if image not in translations_of:
                allowed[:] = False
                break
            moved = (grid @ (matrix - np.eye(3, dtype=int)).T + np.asarray(translation)) @ inverse.T % GRID
            allowed &= np.isin(moved @ code, np.asarray(translations_of[image]) @ code)
        rows = tuple(int(v) for v in basis_change.ravel())
        result |= {(rows, tuple(int(v) for v in p)) for p in grid[allowed]}
    return result


def drop_polar(operation: Operation, polar: list[int]) -> Operation:
    """Set translations along polar axes to 0."""
    return operation[0], tuple(0 if i in polar else v for i, v in enumerate(operation[1]))


def normalizer_generators(number: int, group: set[Operation], centering: list[tuple[int, ...]]) -> list[Operation]:
    """Generators of the proper normalizer over the proper part of the group."""
    polar = polar_axes(group)
    proper = {drop_polar(o, polar) for o in group if round(np.linalg.det(np.reshape(o[0], (3, 3)))) == 1}
    return choose_generators(normalizer(number, group, centering), proper)


def check_letter(number: int, letter: str, triplet: str, group: set[Operation]) -> None:
    """Put an atom on the triplet and a second species on a general position; moyopy must name the letter."""
    rng = np.random.default_rng(number)
    variables = dict(zip("xyz", (0.1413, 0.2237, 0.0719), strict=True))
    point = np.array([evaluate(part, variables) for part in triplet.split(",")])
    operations = [(np.reshape(r, (3, 3)), np.asarray(t) / GRID) for r, t in sorted(group)]
    metric = np.diag([31.0, 43.0, 57.0]) + np.array([[0, 2, 3], [2, 0, 5], [3, 5, 0]])
    metric = np.mean([w.T @ metric @ w for w, _ in operations], axis=0)
    basis = np.linalg.cholesky(metric)
    positions, numbers = [], []
    for species, start in ((1, point), (2, rng.random(3)), (3, rng.random(3))):
        images: list[np.ndarray] = []
        for w, t in operations:
            image = w @ start + t
            if all(np.abs(image - o - np.rint(image - o)).max() > 1e-6 for o in images):
                images.append(image)
        positions += images
        numbers += [species] * len(images)
    cell = moyopy.Cell(basis.tolist(), np.array(positions).tolist(), numbers)
    dataset = moyopy.MoyoDataset(cell, symprec=1e-4, setting=moyopy.Setting.standard())
    assert dataset.number == number, (number, dataset.number)
    # moyopy may move the origin, which permutes letters: undo by asking only where it kept the setting
    if np.allclose(dataset.std_linear, np.eye(3)) and np.allclose(np.asarray(dataset.std_origin_shift) % 1, 0):
        assert dataset.wyckoffs[0] == letter, (number, letter, dataset.wyckoffs[0])


def evaluate(part: str, variables: dict[str, float]) -> float:
    """Value of one coordinate such as `-2x+1/4`."""
    total = 0.0
    for term in part.strip().replace("-", "+-").split("+"):
        if not term:
            continue
        if term[-1] in "xyz":
            factor = term[:-1]
            total += variables[term[-1]] * (float(factor + "1") if factor in ("", "-") else float(factor))
        elif "/" in term:
            numerator, denominator = term.split("/")
            total += int(numerator) / int(denominator)
        else:
            total += float(term)
    return total


def describe(number: int, wyckoff: list[list]) -> str:
    """The line of one space-group type."""
    group, centering = standard_operations(number)
    identity = (1, 0, 0, 0, 1, 0, 0, 0, 1)
    symbol = moyopy.SpaceGroupType(number).hm_short.replace(" ", "")
    generators = choose_generators(group, {(identity, t) for t in centering})
    if number <= 15:
        extra = "*"
    else:
        extra = " ".join(to_xyz(o) for o in normalizer_generators(number, group, centering)) or "-"
    for letter, _, triplet in wyckoff:
        check_letter(number, letter, triplet, group)
    positions = " ".join(
        f"{letter}{multiplicity}:{triplet.replace(' ', '')}" for letter, multiplicity, triplet in wyckoff
    )
    return f"{number};{symbol};{symbol[0]};{' '.join(map(to_xyz, generators)) or '-'};{extra};{positions}"


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wyckoff", type=Path, required=True, help="JSON: number → [[letter, multiplicity, triplet]]")
    wyckoff = json.loads(parser.parse_args().wyckoff.read_text())
    lines = [describe(number, wyckoff[str(number)]) for number in range(1, 231)]
    TARGET.write_text(HEADER + "\n".join(lines) + '\n"""\n')
    print(f"wrote {len(lines)} lines to {TARGET.name}")


if __name__ == "__main__":
    main()
