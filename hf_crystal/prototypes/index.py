"""`PrototypeIndex`: known crystals as canonical sequences, from which candidates for other compositions are made."""

import dataclasses
import functools
import itertools
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from hf_crystal.crystals.elements import reduced_formula
from hf_crystal.crystals.record import CrystalRecord
from hf_crystal.mat2seq.canonical_crystal import CanonicalCrystal, CanonicalSettings
from hf_crystal.mat2seq.canonicalize import canonicalize, canonicalize_record
from hf_crystal.mat2seq.prompts import parse_composition
from hf_crystal.mat2seq.sequence_text import SEPARATOR, SequenceLayout, parse_tokens, split_text
from hf_crystal.mat2seq.space_groups import space_group_symbols
from hf_crystal.mat2seq.tokenization_mat2seq import DecodedCrystal

from .families import Counts, Family, contents, families, read_contents
from .similarity import fit_distances, fit_volumes

__all__ = ["DEFAULT_INDEX", "PrototypeIndex", "embedded_index"]

logger = logging.get_logger(__name__)

Judge = Callable[[list[Any]], Sequence[float | None]]  # energies of structures, eV/atom

DEFAULT_INDEX = "mp20_train"  # what the default generator was trained on, and nothing else
_METADATA = b"hf_crystal.prototypes"
_HEIGHTS = ("above_hull", "predicted_above_hull")
_LOOKED_AT = 256  # nearest known crystals whose votes are counted
_SAME_EDGES, _SAME_ANGLES, _SAME_PLACES = 0.08, 5.0, 0.04  # relative, degrees, fractions: one shape
_PER_EV = 15.0  # weight of an energy of 1 eV/atom, as a distance
_SPREAD = 0.02  # eV/atom: how far above the lowest crystal of a formula others are that share its vote
_JUDGED = 8  # candidates that a judge sees at least: the first one is the same whatever is wanted
_LARGEST_RISE = 0.3  # eV/atom: beyond, predicted energies tell no more
_SPARE = 4  # candidates more than asked for, among which equal ones are found
_DOUBTED, _FAR = 0.2, 0.5  # eV/atom above the hull: a known crystal gets a warning; comes after prototypes
_CLOSE, _CLOSER = 0.5, 0.8  # distance over the sum of radii; how much closer than in the known crystal


class PrototypeIndex:
    """Known crystals by anonymous cell contents, with what was learned of the elements from them.

    ```python
    index = PrototypeIndex.build(records)             # name → crystal, or pairs of them
    index.save("known.parquet")
    PrototypeIndex.load("known.parquet").candidates("SrTiO3", 4)
    ```

    Args:
        names: Name of each crystal, such as its id.
        sequences: Its canonical sequence as text.
        distances: Distances between elements as in `fit_distances`, (119, 119).
        volumes: Volume per atom of each element, Å³, (119,).
        settings: Grid of the sequences.
        rises: Energy of each crystal above the lowest of its formula, eV/atom; 0 where it is not known.
        above_hull: Energy of each crystal above the hull of known phases, calculated, eV/atom; NaN where it is not
            known.
        predicted_above_hull: The same as a model predicts it, where it was not calculated.
        log_odds: Of a prototype: constant, per share of the votes, per cost of the nearest known crystal
            (`scripts/fit_probability.py`); None where nobody has counted, then candidates have no `probability`.
        judged_log_odds: The same, and per eV/atom of predicted energy above the lowest prototype: for candidates that
            a model has judged, which are then in their order.
    """

    def __init__(
        self,
        names: Sequence[str],
        sequences: Sequence[str],
        distances: np.ndarray,
        volumes: np.ndarray,
        settings: CanonicalSettings | None = None,
        rises: np.ndarray | None = None,
        above_hull: np.ndarray | None = None,
        predicted_above_hull: np.ndarray | None = None,
        log_odds: Sequence[float] | None = None,
        judged_log_odds: Sequence[float] | None = None,
    ):
        self.names = list(names)
        self.sequences = list(sequences)
        self.distances = distances
        self.volumes = volumes
        self.settings = settings or CanonicalSettings()
        self.rises = np.zeros(len(self.names)) if rises is None else rises
        self.above_hull = np.full(len(self.names), np.nan) if above_hull is None else above_hull
        guessed = np.full(len(self.names), np.nan) if predicted_above_hull is None else predicted_above_hull
        self.predicted_above_hull = guessed
        self.log_odds, self.judged_log_odds = log_odds, judged_log_odds
        self._layout = SequenceLayout(self.settings)
        self._members = families(self.sequences)
        self._families: dict[Counts, Family] = {}
        self._shapes: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    @functools.cached_property
    def elements(self) -> frozenset[str]:
        """Symbols of the elements that its crystals have."""
        return frozenset().union(*self._systems)

    @functools.cached_property
    def _systems(self) -> frozenset[frozenset[str]]:
        """Elements of each crystal."""
        compositions = {text.partition(f" {SEPARATOR} ")[0] for text in self.sequences}
        return frozenset(frozenset(text.split()[::2]) for text in compositions)

    def unseen(self, symbols: Collection[str]) -> list[str]:
        """In words, which elements, and which two together, none of its crystals has."""
        new = [symbol for symbol in symbols if symbol not in self.elements]
        pairs = itertools.combinations([symbol for symbol in symbols if symbol not in new], 2)
        apart = [pair for pair in pairs if not any(system.issuperset(pair) for system in self._systems)]
        return [
            *(f"{symbol}: in no known crystal" for symbol in new),
            *(f"{first} and {second}: never together in one known crystal" for first, second in apart),
        ]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def build(
        cls,
        records: Mapping[str, Any] | Iterable[tuple[str, Any]],
        *,
        energies: Mapping[str, float] | None = None,
        above_hull: Mapping[str, float] | None = None,
        predicted_above_hull: Mapping[str, float] | None = None,
        settings: CanonicalSettings | None = None,
        distances: np.ndarray | None = None,
        progress: Callable[[int], None] | None = None,
        **fitting: Any,
    ) -> "PrototypeIndex":
        """Canonicalize crystals and learn how alike elements are.

        Args:
            records: Names and crystals of any form that `canonicalize` reads, or canonical crystals. One that cannot
                be read, or that has more atoms than the settings allow, is left out with a line in the log.
            energies: Formation energy of crystals by name, eV/atom, as far as known: a crystal above the lowest of its
                formula has less weight.
            above_hull, predicted_above_hull: Energy above the hull by name, eV/atom, as far as it was calculated or
                predicted: crystals far above it are doubted.
            settings: Grid and tolerances.
            distances: Distances between elements of another index, in place of fitting them.
            progress: Called with the number of crystals so far.
            **fitting: See `fit_distances`.

        Raises:
            ValueError: if no crystal is left.
        """
        settings = settings or CanonicalSettings()
        names, crystals = [], []
        for name, record in records.items() if isinstance(records, Mapping) else records:
            try:
                known = isinstance(record, CanonicalCrystal) and record.settings == settings
                crystals.append(record if known else canonicalize(record, settings=settings))
                names.append(str(name))
            except ValueError as error:
                logger.warning(f"left out {name}: {error}")
            if progress is not None:
                progress(len(names))
        if not names:
            raise ValueError("records hold no crystal that can be read: an index needs at least one")
        texts = [crystal.to_text() for crystal in crystals]
        order = sorted(range(len(texts)), key=lambda row: (texts[row].split(f" {SEPARATOR} ")[1:], names[row]))
        names, sequences = ([some[row] for row in order] for some in (names, texts))
        crystals = [crystals[row] for row in order]
        volumes = np.array([abs(np.linalg.det(crystal.to_record().cell)) for crystal in crystals])
        fitted = fit_volumes([crystal.composition for crystal in crystals], volumes)
        rises = _rises(crystals, [(energies or {}).get(name, np.nan) for name in names])
        calculated, predicted = (
            np.array([(given or {}).get(name, np.nan) for name in names])
            for given in (above_hull, predicted_above_hull)
        )
        index = cls(names, sequences, np.zeros((119, 119)), fitted, settings, rises, calculated, predicted)
        if distances is None:
            distances = fit_distances([index._family(counts) for counts in index._members], **fitting)
        index.distances = distances
        return index

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one parquet file: names, sequences, and what was learned as metadata."""
        import pyarrow
        import pyarrow.parquet

        learned = {
            "distances": self.distances.tolist(),
            "volumes": self.volumes.tolist(),
            "settings": self.settings.to_dict(),
            "log_odds": self.log_odds,
            "judged_log_odds": self.judged_log_odds,
        }
        columns: dict[str, Any] = {"material_id": self.names, "sequence": self.sequences}
        heights = {name: np.clip(getattr(self, name), 0, 30) for name in _HEIGHTS}
        for name, values in {"rise": self.rises, **heights}.items():
            if not np.isnan(values).all():
                columns[name] = pyarrow.array(np.rint(1000 * values), pyarrow.int16(), from_pandas=True)  # meV/atom
        table = pyarrow.table(columns).replace_schema_metadata({_METADATA: json.dumps(learned)})
        pyarrow.parquet.write_table(table, path, compression="zstd", compression_level=19, use_dictionary=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PrototypeIndex":
        """Read what `save` wrote.

        Raises:
            ValueError: if the file is no index.
            FileNotFoundError: if there is no file.
        """
        import pyarrow.parquet

        if not Path(path).is_file():
            raise FileNotFoundError(f"no such index: {path}")
        table = pyarrow.parquet.ParquetFile(path).read()  # no pandas, which read_table imports
        metadata = (table.schema.metadata or {}).get(_METADATA)
        if metadata is None:
            raise ValueError(f"{path} is no index of prototypes: make one with hf-crystal index")
        learned = json.loads(metadata)
        distances, volumes = np.array(learned["distances"]), np.array(learned["volumes"])
        names, sequences = (table.column(name).to_pylist() for name in ("material_id", "sequence"))
        rises, calculated, predicted = (
            table.column(name).to_numpy() / 1000 if name in table.column_names else None
            for name in ("rise", *_HEIGHTS)
        )
        odds = (learned.get(name) for name in ("log_odds", "judged_log_odds"))
        settings = CanonicalSettings(**learned["settings"])
        return cls(names, sequences, distances, volumes, settings, rises, calculated, predicted, *odds)

    def compositions(self, unit: dict[int, int], max_atoms: int | None = None) -> list[dict[int, int]]:
        """The multiples of a formula unit whose anonymous contents occur in the index."""
        divisor = int(np.gcd.reduce(list(unit.values())))
        counts, numbers = contents({number: count // divisor for number, count in unit.items()})
        found = sorted({k for have in self._members if (k := _multiple(have, counts))})
        return [
            dict(zip(numbers, (k * n for n in counts), strict=True))
            for k in found
            if max_atoms is None or k * sum(counts) <= max_atoms
        ]

    def candidates(
        self,
        composition: str | Mapping[Any, Any],
        n: int = 1,
        *,
        formula: bool = False,
        known: bool = True,
        max_atoms: int | None = None,
        space_groups: Collection[int] | None = None,
        exclude: Collection[str] = (),
        keeps: Callable[[DecodedCrystal], bool] | None = None,
        judge: Judge | None = None,
    ) -> list[DecodedCrystal]:
        """Crystals of a composition, as known crystals of the same anonymous contents suggest.

        Every known crystal votes, the more the closer its elements are, for its prototype with the new elements in
        it; a prototype is a space group with elements on Wyckoff positions, and a shape. The best placed known crystal
        of each prototype gives the candidate, its cell scaled to the volume predicted from both compositions.

        Of a formula all multiples in the index are looked at together. Its own known crystals come first, lowest
        energy first, then prototypes, then known crystals of more than 0.5 eV/atom above the hull; other formulas have
        one vote each, which their crystals share by energy, so that the cells that low crystals have come first.

        Args:
            composition: Atoms of the primitive cell.
            n: Largest number of candidates.
            formula: Take the composition as a formula instead.
            known: False leaves out known crystals of the composition, of any space group, and what pymatgen's
                `StructureMatcher` takes for one of them.
            max_atoms: Largest cell of a formula.
            space_groups: Numbers of the space groups that are accepted.
            exclude: Names of known crystals that are not used.
            keeps: Which candidates are accepted.
            judge: Energies of prototypes, eV/atom, as a model predicts them: of some more than are wanted those come
                first that votes and energy together make likely. An index without `judged_log_odds` does not ask.

        Returns:
            Candidates, all different, the likeliest first; `source` is "prototype NAME", or "known NAME"
            for a known crystal of the composition itself; `score` the share of the votes, of a known crystal of a
            formula its share by energy among those; `probability` of prototypes for a formula without known crystals
            that this is its crystal. A known crystal of more than 0.2 eV/atom above the hull has a warning.
        """
        unit = parse_composition(composition)
        wanted = self.compositions(unit, max_atoms) if formula else [unit]
        allowed = self._allowed(space_groups, frozenset(exclude))
        own = self._own(wanted, allowed) if formula else []
        near: list[tuple[int, float]] = []
        far: list[tuple[int, float]] = []
        for row, share in own:
            (far if self._height(row) > _FAR else near).append((row, share))
        rows = far if known else self._own(self.compositions(unit), self._allowed(None, frozenset(exclude)))
        refused = [self._item(row, self.known(row), "known", share) for row, share in rows]
        found: list[DecodedCrystal] = []

        def add_known(rows: list[tuple[int, float]]) -> None:
            for row, share in rows:
                mine = self._item(row, self.known(row), "known", share)
                if (keeps is None or keeps(mine)) and not any(self._same_crystal(mine, other) for other in found):
                    found.append(mine)
                if len(found) >= n:
                    return

        if known:
            add_known(near)
        if len(found) >= n:
            return found
        first, odds = len(found), self.log_odds
        if judge is not None and self.judged_log_odds is not None:
            odds, wide = self.judged_log_odds, max(n, _JUDGED)
        else:
            judge, wide = None, n
        nearest, ranked = self._ranked(wanted, allowed, formula=formula)
        for row, elements, score in ranked:
            item = self._substituted(row, elements, score)
            if item is None or (keeps is not None and not keeps(item)):
                continue
            if any(self._same_crystal(item, other) for other in (*refused, *found[:first])):
                continue
            if not known and equal_of(item.structure, refused) is not None:
                continue
            # exchanged elements may give the same crystal: the votes of both count for it
            same = next((k for k in range(first, len(found)) if self._same_crystal(item, found[k])), None)
            if same is None:
                found.append(item)
            else:
                found[same] = dataclasses.replace(found[same], score=found[same].score + score)  # type: ignore[operator]
            if len(found) == wide + _SPARE:
                break
        voted = sorted(found[first:], key=lambda item: item.score or 0.0, reverse=True)[: wide - first]
        found[first:] = self._judged(voted, odds, nearest, judge)[: n - first]
        if odds is None or not formula or own or space_groups is not None or max_atoms is not None:  # not counted so
            found = [dataclasses.replace(item, probability=None) for item in found]
        if known and len(found) < n:
            add_known(far)
        return found

    def _judged(
        self, items: list[DecodedCrystal], odds: Sequence[float] | None, nearest: float, judge: Judge | None
    ) -> list[DecodedCrystal]:
        """Prototypes by the probability to be the crystal of their formula, the likeliest first.

        Args:
            items: By votes.
            odds: `log_odds`, with a judge `judged_log_odds`.
            nearest: Cost of the nearest known crystal.
            judge: See `candidates`.
        """
        if odds is None or not items:
            return items
        constant, per_share, per_cost, *per_rise = odds
        logits = np.array([constant + per_share * (item.score or 0.0) + per_cost * nearest for item in items])
        if judge is not None:
            energies = np.array(judge([item.structure for item in items]), dtype=float)
            if np.isnan(energies).all():  # of elements that it does not know
                return self._judged(items, self.log_odds, nearest, None)
            rises = energies - np.nanmin(energies)
            logits += per_rise[0] * np.nan_to_num(rises, nan=_LARGEST_RISE).clip(max=_LARGEST_RISE)
        order = np.argsort(-logits, kind="stable")
        return [dataclasses.replace(items[k], probability=float(1 / (1 + np.exp(-logits[k])))) for k in order]

    def known_of(self, unit: dict[int, int]) -> list[DecodedCrystal]:
        """Known crystals of a formula, lowest energy first.

        Args:
            unit: Atomic numbers with their counts; crystals may have any multiple.
        """
        return [self._item(row, self.known(row), "known", share) for row, share in self._known_rows(unit)]

    def knows(self, unit: dict[int, int]) -> bool:
        """Whether there is a known crystal of a formula."""
        return bool(self._known_rows(unit))

    def _known_rows(self, unit: dict[int, int]) -> list[tuple[int, float]]:
        return self._own(self.compositions(unit), self._allowed(None, frozenset()))

    def is_known(self, item: DecodedCrystal) -> bool:
        """Whether pymatgen's `StructureMatcher` takes a crystal for one of the index (any volume)."""
        return equal_of(item.structure, self.known_of(item.canonical.composition)) is not None  # type: ignore[union-attr]

    def _same_crystal(self, first: DecodedCrystal, second: DecodedCrystal) -> bool:
        """Whether two candidates are of one label and shape."""
        labels = [
            (item.canonical.space_group, [(site.position, site.atomic_number) for site in item.canonical.sites])
            for item in (first, second)
            if item.canonical is not None
        ]
        return labels[0] == labels[1] and self._same_shape(first.sequence, second.sequence)

    def _family(self, counts: Counts) -> Family:
        if counts not in self._families:
            rows = self._members[counts]
            sequences = [self.sequences[row] for row in rows]
            elements = np.array([read_contents(sequence)[1] for sequence in sequences])
            self._families[counts] = Family.build(counts, rows, elements, sequences)
        return self._families[counts]

    def _allowed(self, space_groups: Collection[int] | None, exclude: frozenset[str]) -> Callable[[int], bool]:
        """Which rows may be used."""
        symbols = None if space_groups is None else {space_group_symbols()[number - 1] for number in space_groups}
        return lambda row: self.names[row] not in exclude and (symbols is None or self._symbol(row) in symbols)

    def _own(self, wanted: Sequence[dict[int, int]], allowed: Callable[[int], bool]) -> list[tuple[int, float]]:
        """Known crystals of the compositions themselves, lowest energy first, with their shares by energy."""
        rows: list[int] = []
        for composition in wanted:
            counts, numbers = contents(composition)
            if counts in self._members:
                family = self._family(counts)
                rows += family.rows[(family.elements == numbers).all(1)].tolist()
        rows = sorted(filter(allowed, rows), key=lambda row: self.rises[row])  # stable: few formula units come first
        weights = np.exp(-self.rises[rows] / _SPREAD)
        return list(zip(rows, (weights / weights.sum()).tolist(), strict=True))

    def _ranked(
        self, wanted: Sequence[dict[int, int]], allowed: Callable[[int], bool], *, formula: bool
    ) -> tuple[float, list[tuple[int, dict[int, int], float]]]:
        """Cost of the nearest, and of each row the new elements and the share of the votes, most first."""
        nearest: list[tuple[float, int, dict[int, int], tuple]] = []
        known = [(contents(composition), self._family(contents(composition)[0]))
                 for composition in wanted if contents(composition)[0] in self._members]  # fmt: skip
        families = [family for _, family in known]
        rises = [self.rises[family.rows] for family in families]
        if formula and families:  # slots are in one order whatever the number of formula units
            burden = _shared_vote(np.concatenate([family.elements for family in families]), np.concatenate(rises))
            burdens = np.split(burden, np.cumsum([len(part) for part in rises])[:-1])
        else:
            burdens = [_PER_EV * part for part in rises]
        for ((counts, numbers), family), burden in zip(known, burdens, strict=True):
            theirs = family.elements[:, family.permutations]  # (R, P, k)
            costs = self.distances[np.array(numbers), theirs] @ family.shares
            costs = (costs + burden[:, None]).ravel()
            limit = len(nearest) + _LOOKED_AT
            for place in np.argsort(costs, kind="stable").tolist():
                r, p = divmod(place, len(family.permutations))
                row = int(family.rows[r])
                if not allowed(row):
                    continue
                new = dict(zip(theirs[r, p].tolist(), numbers, strict=True))
                if formula and all(one == other for one, other in new.items()):
                    continue  # a known crystal
                nearest.append((float(costs[place]), row, new, (counts, int(family.labels[r, p]))))
                if len(nearest) == limit:
                    break
        nearest = sorted(nearest, key=lambda item: item[0])[:_LOOKED_AT]
        weights = np.exp([nearest[0][0] - cost for cost, *_ in nearest]) if nearest else np.zeros(0)
        votes: list[float] = []
        leaders: dict[tuple, list[int]] = defaultdict(list)  # places of the first of each shape, by label
        firsts: list[int] = []
        for place, (_, row, _, label) in enumerate(nearest):
            alike = (
                k
                for k in leaders[label]
                if self._same_shape(self.sequences[row], self.sequences[nearest[firsts[k]][1]])
            )
            leader = next(alike, None)
            if leader is None:
                leaders[label].append(len(firsts))
                firsts.append(place)
                votes.append(float(weights[place]))
            else:
                votes[leader] += float(weights[place])
        order = np.argsort(-np.array(votes), kind="stable")
        total = float(weights.sum())
        ranked = [(nearest[firsts[k]][1], nearest[firsts[k]][2], votes[k] / total) for k in order.tolist()]
        return nearest[0][0] if nearest else math.inf, ranked

    def _symbol(self, row: int) -> str:
        return self.sequences[row].split(f" {SEPARATOR} ")[1]

    def _shape(self, sequence: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logarithms of the edges without the size of the cell, angles, free coordinates."""
        if sequence in self._shapes:
            return self._shapes[sequence]
        _, _, cell, sites = sequence.split(f" {SEPARATOR} ")
        words = cell.split()
        pairs = list(zip(words[::2], map(float, words[1::2]), strict=True))
        edges = np.log([value for axis, value in pairs if len(axis) == 1])
        angles = np.array([value for axis, value in pairs if len(axis) > 1])
        places = np.array([float(word) for word in sites.split() if word[0] == "."])
        self._shapes[sequence] = edges - edges.mean(), angles, places
        return self._shapes[sequence]

    def _same_shape(self, first: str, second: str) -> bool:
        """Whether two crystals of one label are alike in their free parameters."""
        edges, angles, places = (a - b for a, b in zip(self._shape(first), self._shape(second), strict=True))
        return (
            np.abs(edges).max(initial=0.0) < _SAME_EDGES
            and np.abs(angles).max(initial=0.0) < _SAME_ANGLES
            and np.abs(places - np.rint(places)).max(initial=0.0) < _SAME_PLACES
        )

    def known(self, row: int) -> CanonicalCrystal:
        """The crystal of a row."""
        return parse_tokens(split_text(self.sequences[row], self._layout), self._layout)

    def _substituted(self, row: int, new: dict[int, int], score: float) -> DecodedCrystal | None:
        """A known crystal with other elements in a cell of predicted volume; None where atoms come too close."""
        known = self.known(row).to_record()
        numbers = np.array([new[number] for number in known.atomic_numbers.tolist()])
        factor = float(self.volumes[numbers].sum() / self.volumes[known.atomic_numbers].sum())
        scaled = CrystalRecord(numbers, known.frac_coords, known.cell * factor ** (1 / 3))
        if self._closeness(scaled) < min(_CLOSE, _CLOSER * self._closeness(known)):
            return None
        crystal = canonicalize_record(scaled.cell, scaled.frac_coords, numbers, self.settings)
        same = np.array_equal(numbers, known.atomic_numbers)
        return self._item(row, crystal, "known" if same else "prototype", score)

    def _item(self, row: int, crystal: CanonicalCrystal, kind: str, score: float) -> DecodedCrystal:
        text, source = crystal.to_text(), f"{kind} {self.names[row]}"
        doubts: tuple[str, ...] = ()
        if kind == "known" and (height := self._height(row)) > _DOUBTED:
            how = "predicted" if np.isnan(self.above_hull[row]) else "calculated"
            above = f"{height:.2f} eV/atom above the hull of known phases"
            rarely = "" if how == "predicted" else ", such crystals are hardly ever made"
            doubts = (f"{source}: was {how} {above}{rarely}",)
        return DecodedCrystal(
            crystal.to_structure(), None, text, canonical=crystal, warnings=doubts, source=source, score=score,
            known_e_above_hull=float(self.above_hull[row]) if kind == "known" and self.above_hull[row] >= 0 else None,
        )  # fmt: skip

    def _height(self, row: int) -> float:
        """Energy above the hull as calculated, or else predicted; NaN where neither is known."""
        calculated = self.above_hull[row]
        return float(self.predicted_above_hull[row] if np.isnan(calculated) else calculated)

    def _closeness(self, record: CrystalRecord) -> float:
        """Smallest distance over the sum of both radii, where it is below 1; radii are those of the volumes."""
        from pymatgen.core import Lattice, Structure

        radii = np.cbrt(3 / (4 * np.pi) * self.volumes)[record.atomic_numbers]
        structure = Structure(Lattice(record.cell), record.atomic_numbers.tolist(), record.frac_coords)
        first, second, _, distances = structure.get_neighbor_list(2 * float(radii.max()))
        return float((distances / (radii[first] + radii[second])).min(initial=1.0))


def equal_of(structure: Any, known: Sequence[DecodedCrystal]) -> DecodedCrystal | None:
    """The first of these that pymatgen takes for the crystal, at its default tolerances and any volume."""
    from hf_crystal.evaluation import novelty

    row = novelty([structure], known, bucket_by="formula").match[0] if known else None
    return None if row is None else known[row]


def _shared_vote(elements: np.ndarray, rises: np.ndarray) -> np.ndarray:
    """-log of the share of each crystal in the vote of its formula, by energy (N,); its `elements` are (N, k)."""
    _, formula = np.unique(elements, axis=0, return_inverse=True)
    weights = np.exp(-rises / _SPREAD)
    return np.log(np.bincount(formula.ravel(), weights)[formula.ravel()]) + rises / _SPREAD


def _multiple(have: Counts, unit: Counts) -> int:
    """How many units some counts are; 0 if they are none."""
    times = have[0] // unit[0]
    return times if times and have == tuple(times * n for n in unit) else 0


def _rises(crystals: Sequence[CanonicalCrystal], energies: Sequence[float]) -> np.ndarray:
    """Energy above the lowest of the same reduced formula; 0 where there is none."""
    formulas = [reduced_formula(crystal.to_record().atomic_numbers) for crystal in crystals]
    lowest: dict[str, float] = {}
    for formula, energy in zip(formulas, energies, strict=True):
        lowest[formula] = float(np.fmin(lowest.get(formula, np.inf), energy))
    rises = [energy - lowest[formula] for formula, energy in zip(formulas, energies, strict=True)]
    return np.clip(np.round(np.nan_to_num(rises), 3), 0, 30)


def embedded_index(name: str = DEFAULT_INDEX) -> PrototypeIndex:
    """An index that travels inside the package.

    Args:
        name: `mp20_train`: the training part of MP-20, for what is compared on benchmarks; `mp`: the Materials
            Project, with everything that benchmarks hold out, for users (`scripts/make_mp_index.py`).

    Raises:
        ValueError: there is no such index in this installation.
    """
    path = Path(__file__).parent / f"{name}.parquet"
    if not path.is_file():
        available = sorted(file.stem for file in path.parent.glob("*.parquet"))
        raise ValueError(f"embedded index {name!r} not found; available: {available}")
    return PrototypeIndex.load(path)
