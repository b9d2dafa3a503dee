"""What an encoder computes inside: attention to every periodic image, and the frames of CrystalFramer."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..crystals.elements import reduced_formula
from ..crystals.record import CHEMICAL_SYMBOLS
from ..typing import CrystalLike, PropertyModelLike

if TYPE_CHECKING:
    from ..encoders.feature_extraction_crystal import CrystalFeatureExtractor

__all__ = ["AtomView", "BlockView", "EncoderView", "inspect_encoder"]


@dataclass
class AtomView:
    """What one atom attends to in one block.

    Attributes:
        vectors: `(M, 3)`, from the atom to the images within reach, Å; the atom itself is among them.
        keys: `(M,)`, index of each image's atom in the cell.
        weights: `(M, H)`, attention; sums to 1 over the images (of a routed head: of its part in real space).
        axes: `(F, 6)` or None: head, axis (0, 1, 2), direction (3), weight of each direction of the frames; opposite
            directions are listed as such. The weights of one head and axis sum to 1 where the axis exists.
    """

    vectors: np.ndarray
    keys: np.ndarray
    weights: np.ndarray
    axes: np.ndarray | None = None

    @property
    def distances(self) -> np.ndarray:
        """`(M,)`, Å."""
        return np.linalg.norm(self.vectors, axis=1)

    def shells(self, head: int | None = None, tolerance: float = 0.05) -> list[tuple[float, int, float]]:
        """Attention to shells of images at one distance.

        Args:
            head: one head; None for the mean over heads.
            tolerance: distances closer than this are one shell, Å.

        Returns:
            Distance in Å, key atom and weight, by distance.
        """
        weights = self.weights.mean(axis=1) if head is None else self.weights[:, head]
        found: list[tuple[float, int, float]] = []
        for index in np.argsort(self.distances, kind="stable"):
            distance, key = float(self.distances[index]), int(self.keys[index])
            place = next(
                (i for i, (d, k, _) in enumerate(found) if k == key and abs(d - distance) < tolerance), len(found)
            )
            if place == len(found):
                found.append((distance, key, 0.0))
            found[place] = (found[place][0], key, found[place][2] + float(weights[index]))
        return sorted(found)


@dataclass
class BlockView:
    """One block.

    Attributes:
        attention: `(H, N, N)`, summed over the images of each atom; rows are the atoms that look.
        atoms: real-space detail of every atom; empty in blocks that work in reciprocal space only.
    """

    attention: np.ndarray
    atoms: list[AtomView] = field(default_factory=list)


@dataclass
class EncoderView:
    """One crystal as an encoder sees it.

    Attributes:
        formula: reduced formula.
        symbols: element of each atom.
        positions: `(N, 3)`, Å.
        cell: `(3, 3)`, lattice vectors in rows, Å.
        blocks: one per block of the model.
        values: target → predicted value.
        units: target → unit.
    """

    formula: str
    symbols: list[str]
    positions: np.ndarray
    cell: np.ndarray
    blocks: list[BlockView]
    values: dict[str, float]
    units: dict[str, str]

    @property
    def labels(self) -> list[str]:
        """Element and number of each atom, such as `O3`; counted from 1."""
        return [f"{symbol}{index}" for index, symbol in enumerate(self.symbols, 1)]

    def block(self, index: int) -> BlockView:
        """A block; negative numbers count from the last.

        Raises:
            ValueError: there is no such block.
        """
        if not -len(self.blocks) <= index < len(self.blocks):
            raise ValueError(f"there is no block {index + 1} (index {index}); the model has {len(self.blocks)}")
        return self.blocks[index]

    def check(self, *, atom: int | None = None, head: int | None = None) -> None:
        """Raise `ValueError` where there is no such atom or head."""
        heads = len(self.blocks[0].attention)
        for name, value, count in (("atom", atom, len(self.symbols)), ("head", head, heads)):
            if value is not None and not 0 <= value < count:
                raise ValueError(f"there is no {name} {value + 1} (index {value}); {self.formula} has {count}")


def inspect_encoder(
    structure: CrystalLike | EncoderView,
    model: PropertyModelLike | None = None,
    *,
    feature_extractor: "CrystalFeatureExtractor | None" = None,
) -> EncoderView:
    """Run an encoder on one crystal and keep what it attends to.

    Args:
        structure: one crystal, in any form that `CrystalFeatureExtractor` takes, or an `EncoderView`, returned as is.
        model: see `hf_crystal.loading.load_property_model`.
        feature_extractor: replaces the model's own.

    Returns:
        `EncoderView`.

    Raises:
        CrystalInputError: the crystal cannot be read.
    """
    if isinstance(structure, EncoderView):
        return structure
    import torch

    from ..loading import load_property_model

    loaded, extractor = load_property_model(model, feature_extractor)
    arrays = extractor.extract(structure)
    batch = extractor.pad([arrays]).to(loaded.device)
    attentions = [layer.attention for layer in loaded.encoder.layers]
    with contextlib.ExitStack() as stack:
        images = [stack.enter_context(_recorded(attention, "_with_angles")) for attention in attentions]
        frames = [stack.enter_context(_recorded(attention, "_dynamic_axes")) for attention in attentions]
        stack.enter_context(_reference_kernel(loaded.config))
        stack.enter_context(torch.no_grad())
        output = loaded(**batch, output_attentions=True)
    numbers = arrays["atomic_numbers"].tolist()
    blocks = []
    for weights, image_calls, frame_calls in zip(output.attentions, images, frames, strict=True):
        block = BlockView(weights[0].float().cpu().numpy())
        if image_calls:
            block.atoms = _atom_views(image_calls, frame_calls, len(numbers))
        blocks.append(block)
    names = loaded.config.target_names
    return EncoderView(
        formula=reduced_formula(numbers),
        symbols=[CHEMICAL_SYMBOLS[number] for number in numbers],
        positions=np.asarray(arrays["positions"], dtype=float),
        cell=np.asarray(arrays["cell"], dtype=float),
        blocks=blocks,
        values=dict(zip(names, output.logits[0].tolist(), strict=True)),
        units=dict(zip(names, loaded.config.target_units, strict=True)),
    )


Call = tuple[tuple[Any, ...], Any]


@contextlib.contextmanager
def _recorded(module: Any, name: str) -> Iterator[list[Call]]:
    """Keep arguments and results of a method of one object; it need not exist (Crystalformer has no frames)."""
    calls: list[Call] = []
    original: Callable[..., Any] | None = getattr(module, name, None)
    if original is None:
        yield calls
        return

    def keep(*arguments: object) -> Any:
        """Call the method and write the call down."""
        result = original(*arguments)
        calls.append((arguments, result))
        return result

    module.__dict__[name] = keep
    try:
        yield calls
    finally:
        del module.__dict__[name]


@contextlib.contextmanager
def _reference_kernel(config: Any) -> Iterator[None]:
    """The plain kernel for the time of one call: it forms the weight of every image, a fused one may not."""
    kernel = config.attention_kernel
    config.attention_kernel = "reference"
    try:
        yield
    finally:
        config.attention_kernel = kernel


def _atom_views(image_calls: list[Call], frame_calls: list[Call], num_atoms: int) -> list[AtomView]:
    views: list[AtomView | None] = [None] * num_atoms
    for number, ((result, _, images), _) in enumerate(image_calls):
        layout = images.layout
        # images outside an adaptive box have weight zero; those of no row at all are padding
        mask = layout.edge_mask.cpu().numpy()
        keys = layout.pair_key.gather(1, layout.edge_pair).cpu().numpy()
        weights = result.edge_weights.float().cpu().numpy()
        vectors = layout.edge_vectors.float().cpu().numpy()
        axes = frame_calls[number][1] if frame_calls else getattr(images, "static_axes", None)
        for row, atom in enumerate(layout.rows.tolist()):
            kept = mask[row]
            found = None if axes is None else _axes_of_atom(axes, row)
            views[atom] = AtomView(vectors[row][kept], keys[row][kept], weights[row][kept], found)
    return [view for view in views if view is not None]


def _axes_of_atom(axes: Any, row: int) -> np.ndarray:
    """Directions of one atom's frames, see `AtomView.axes`."""
    mine = (axes.atom == row).cpu().numpy()
    lines = axes.direction.float().cpu().numpy()[mine]
    listed = []
    for sign, weights in ((1.0, axes.weight), (-1.0, axes.opposite)):
        shares = weights.float().cpu().numpy()[mine]
        line, head, axis = shares.nonzero()
        listed.append(np.column_stack([head, axis, sign * lines[line], shares[line, head, axis]]))
    return np.concatenate(listed)
