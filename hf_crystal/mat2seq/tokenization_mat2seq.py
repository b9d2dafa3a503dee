# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""`Mat2SeqTokenizer`: crystals to token ids and back.

Text that is a whole crystal gets the end token, the beginning of one, a prompt, does not.

The tokenizer takes everything that `as_record` takes (pymatgen `Structure`, ASE `Atoms`, files, records) and
sequence text. Its `tokenizer.json` alone reads and writes sequence text, also where this package is not installed.

Source: Yan et al., NeurIPS 2024 (arXiv 2503.00152) for the aims; the sequence is this project's own.
"""

import concurrent.futures
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

from transformers import BatchEncoding, PreTrainedConfig, TokenizersBackend
from transformers.tokenization_utils_base import TruncationStrategy

from ..crystals.doubts import update_checkpoint
from ..crystals.reading import CrystalInputError, CrystalLike
from .canonicalize import CanonicalCrystal, CanonicalSettings, canonicalize
from .sequence_text import (
    MissingEndError,
    SequenceError,
    SequenceLayout,
    UnexpectedTokenError,
    join_tokens,
    parse_tokens,
    split_text,
    write_tokens,
)
from .vocabulary import DEFAULT_PROPERTIES, MAX_COUNT, MAX_WHOLE, PropertyBins, build_vocabulary

try:  # transformers brings it along; the import scan of the Hub knows no more than what stands outside of try
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel
except ImportError as error:
    raise ImportError("Mat2SeqTokenizer needs tokenizers: pip install tokenizers") from error

__all__ = ["DecodedCrystal", "Mat2SeqTokenizer", "register_mat2seq_tokenizer"]


def update_v1_v2(values: dict[str, Any]) -> dict[str, Any]:
    """Tokenizers saved before there was a `coordinate_step` used every step of the grid."""
    return {"coordinate_step": 0.0, **values}


UPDATES = (update_v1_v2,)


@dataclass(frozen=True)
class DecodedCrystal:
    """Result of decoding one sequence: a structure or an error.

    Attributes:
        structure: The crystal (primitive cell), or None where the sequence is none.
        error: The reason, or None; a `SequenceError` says at which token.
        sequence: The sequence as text.
        log_likelihood: Natural logarithm of the probability of the generated part, where a model wrote it.
        canonical: The crystal on its grid, as the sequence spells it.
        warnings: What a user should know about how it was generated, such as a condition outside the trained range.
        source: Where it comes from: "model"; "prototype" and the name of a known crystal with other elements; "known"
            and its name for a known crystal of this formula.
        score: Share of the votes of known crystals, where one of them is the source.
        probability: That a prototype is the lowest crystal of a formula of which none is known, if it lies near the
            hull.
        known_e_above_hull: Of a known crystal, how far its calculated energy is above the hull, eV/atom, where that is
            known.
    """

    structure: Any
    error: ValueError | None
    sequence: str = ""
    log_likelihood: float | None = None
    canonical: CanonicalCrystal | None = None
    warnings: tuple[str, ...] = ()
    source: str = "model"
    score: float | None = None
    probability: float | None = None
    known_e_above_hull: float | None = None


_GRID = CanonicalSettings()  # its defaults are the tokenizer's


class Mat2SeqTokenizer(TokenizersBackend):
    """Tokenizer of crystals.

    Args:
        symprec: Largest displacement of an atom, Å, that symmetry may cost.
        fraction_steps: Grid of free coordinates, steps per cell edge.
        length_step: Grid of cell lengths, Å.
        angle_step: Grid of cell angles, degrees.
        max_strain: Largest strain of the cell that symmetry may cost.
        max_atoms: Largest number of atoms in a primitive cell.
        digits_per_token: Decimal digits per token, 1 to 3.
        properties: Conditions: `PropertyBins` or dicts with `name`, `unit`, `edges`.
        coordinate_step: Largest step, Å, of free coordinates, see `CanonicalSettings`.
        vocab: Vocabulary read from `tokenizer.json`; must agree with the settings.
        **kwargs: Passed to `TokenizersBackend`.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json"}
    model = WordLevel  # type: ignore[assignment]
    _tokenizer: Tokenizer
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        symprec: float = _GRID.symprec,
        fraction_steps: int = _GRID.fraction_steps,
        length_step: float = _GRID.length_step,
        angle_step: float = _GRID.angle_step,
        max_strain: float = _GRID.max_strain,
        max_atoms: int = MAX_COUNT,
        digits_per_token: int = 2,
        properties: Sequence[PropertyBins | Mapping[str, Any]] | None = None,
        vocab: Mapping[str, int] | None = None,
        coordinate_step: float = _GRID.coordinate_step,
        **kwargs: Any,
    ):
        settings = CanonicalSettings(
            symprec, fraction_steps, length_step, angle_step, max_strain, max_atoms, coordinate_step
        )
        self._layout = SequenceLayout(settings, digits_per_token)
        self._properties = tuple(
            p if isinstance(p, PropertyBins) else PropertyBins(**p)
            for p in (DEFAULT_PROPERTIES if properties is None else properties)
        )
        tokens = build_vocabulary(self._layout, self._properties)
        vocabulary = {token: i for i, token in enumerate(tokens)}
        if vocab is not None and any(vocabulary.get(token, -1) != i for token, i in vocab.items()):
            raise ValueError("vocab in tokenizer.json does not belong to the settings in tokenizer_config.json")
        self._tokenizer = _backend(vocabulary, digits_per_token)
        kwargs.pop("post_processor", None)  # rebuilt with the backend
        special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
        super().__init__(
            symprec=symprec,
            fraction_steps=fraction_steps,
            length_step=length_step,
            angle_step=angle_step,
            max_strain=max_strain,
            max_atoms=max_atoms,
            coordinate_step=coordinate_step,
            digits_per_token=digits_per_token,
            properties=[p.to_dict() for p in self._properties],
            **{**special, "clean_up_tokenization_spaces": False, **kwargs, "checkpoint_version": len(UPDATES) + 1},
        )

    @classmethod
    def convert_to_native_format(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What transformers does with the settings it has read, after they were brought to the newest version.

        Raises:
            ValueError: `checkpoint_version` is newer than this code.
        """
        return super().convert_to_native_format(*args, **update_checkpoint(kwargs, UPDATES, "a Mat2SeqTokenizer"))

    @property
    def settings(self) -> CanonicalSettings:
        """Grid and tolerances; part of what a sequence means."""
        return self._layout.settings

    @property
    def layout(self) -> SequenceLayout:
        """Grid and number formats."""
        return self._layout

    @property
    def property_bins(self) -> tuple[PropertyBins, ...]:
        """Conditions that may stand in front of a sequence."""
        return self._properties

    # ---------------------------------------------------------------------------------------------------- encoding

    def to_text(
        self, structure: CrystalLike | CanonicalCrystal, *, properties: Mapping[str, float | None] | None = None
    ) -> str:
        """Sequence text of a structure, with conditions in front.

        Raises:
            ValueError: for an unknown property or a crystal outside the vocabulary.
            CrystalInputError: for a structure that cannot be read.
        """
        crystal = (
            structure if isinstance(structure, CanonicalCrystal) else canonicalize(structure, settings=self.settings)
        )
        if crystal.settings != self.settings:
            raise ValueError(f"the crystal has {crystal.settings}; this tokenizer has {self.settings}")
        for name, value in crystal.cell_parameters.items():
            if value >= MAX_WHOLE + 1:
                raise ValueError(f"cell parameter {name} is {value:g}; accepted: below {MAX_WHOLE + 1}")
        tokens = self.condition_tokens(properties) + write_tokens(crystal, self._layout.digits_per_token)
        return join_tokens(tokens)

    def condition_tokens(self, properties: Mapping[str, float | None] | None) -> list[str]:
        """Tokens of the known properties, in the order of the vocabulary; None and NaN are left out."""
        values = dict(properties or {})
        tokens: list[str] = []
        for known in self._properties:
            value = values.pop(known.name, None)
            if value is not None and not math.isnan(value):
                tokens += [known.token, known.bin_token(float(value))]
        if values:
            names = ", ".join(p.name for p in self._properties) or "none"
            raise ValueError(f"unknown properties {sorted(values)}; this tokenizer has: {names}")
        return tokens

    def _encode_plus(  # type: ignore[override]
        self,
        text: Any,
        text_pair: None = None,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        is_split_into_words: bool = False,
        properties: Mapping[str, float | None] | Sequence[Mapping[str, float | None]] | None = None,
        num_workers: int = 0,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Turn structures into text, then leave the rest to the backend."""
        if text_pair is not None or is_split_into_words:
            raise ValueError("Mat2SeqTokenizer takes single sequences: no text_pair, no is_split_into_words")
        batched = isinstance(text, (list, tuple))
        inputs = list(text) if batched else [text]
        if isinstance(properties, Mapping) or properties is None:
            conditions: Sequence[Mapping[str, float | None] | None] = [properties] * len(inputs)
        else:
            conditions = list(properties)
        if len(conditions) != len(inputs):
            raise ValueError(f"{len(conditions)} sets of properties for {len(inputs)} crystals")
        special = bool(kwargs.get("add_special_tokens", True))
        texts = self._texts(inputs, conditions, num_workers, special)
        if truncation_strategy != TruncationStrategy.DO_NOT_TRUNCATE:
            limit = max_length or self.model_max_length
            for index, line in enumerate(texts):
                length = len(split_text(line, self._layout)) + special
                if length > limit:
                    raise ValueError(
                        f"sequence {index} has {length} tokens, max_length is {limit}: a cut sequence is no crystal; "
                        "raise max_length or leave the crystal out"
                    )
            truncation_strategy = TruncationStrategy.DO_NOT_TRUNCATE
        return super()._encode_plus(
            texts if batched else texts[0],
            truncation_strategy=truncation_strategy,
            max_length=max_length,
            **kwargs,
        )

    def _texts(
        self,
        inputs: list[Any],
        conditions: Sequence[Mapping[str, float | None] | None],
        num_workers: int,
        special: bool,
    ) -> list[str]:
        """Text for the backend, which adds the begin; with `special` the end stands behind whole sequences."""
        lines: list[str | None] = [self._sequence_text(item, special) for item in inputs]
        rest = [i for i, line in enumerate(lines) if line is None]
        jobs = [inputs[i] for i in rest]
        if num_workers > 1 and len(jobs) > 1:
            with concurrent.futures.ProcessPoolExecutor(num_workers) as pool:
                work = functools.partial(_canonicalize_item, self.settings)
                results = list(pool.map(work, jobs, chunksize=max(1, len(jobs) // (8 * num_workers))))
        else:
            results = [_canonicalize_item(self.settings, job) for job in jobs]
        for index, result in zip(rest, results, strict=True):
            if isinstance(result, ValueError):
                raise _located(result, index, len(inputs))
            text = self.to_text(result, properties=conditions[index])
            lines[index] = f"{text} {self.eos_token}" if special else text
        for index, line in enumerate(lines):
            if index not in rest and conditions[index]:
                lines[index] = join_tokens([*self.condition_tokens(conditions[index]), str(line)])
        return [str(line) for line in lines]

    def _sequence_text(self, item: Any, special: bool) -> str | None:
        """The text itself if the item is one; None for anything that has to be read as a structure.

        With `special` a whole sequence gets its end and a prompt, which is to be continued, gets none.
        """
        if not isinstance(item, str):
            return None
        words = split_text(item, self._layout)
        if special and words and words[0] == self.bos_token:  # the backend adds it
            words = words[1:]
        vocabulary = self._vocabulary
        if all(word in vocabulary for word in words):
            return join_tokens([*words, self.eos_token] if special and self._is_whole(words) else words)
        if "|" in words:
            unknown = next(word for word in words if word not in vocabulary)
            raise UnexpectedTokenError(f"{unknown!r} is not in the vocabulary", words.index(unknown))
        return None

    def _is_whole(self, words: list[str]) -> bool:
        """Whether words are a crystal to which nothing can be added."""
        try:
            parse_tokens(words, self._layout)
        except SequenceError:
            return False
        return True

    @functools.cached_property
    def _vocabulary(self) -> dict[str, int]:
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def __getstate__(self) -> dict[str, Any]:
        """State without what is rebuilt on demand."""
        state = self.__dict__.copy()
        state.pop("_vocabulary", None)
        return state

    # ---------------------------------------------------------------------------------------------------- decoding

    def decode(self, token_ids: Any, skip_special_tokens: bool = True, **kwargs: Any) -> Any:
        """Sequence text of ids (without begin, end and padding), the inverse of `encode`; lists of ids give lists.

        Raises:
            ValueError: an id is negative, or has more than 32 bits.
        """
        try:
            return super().decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)
        except OverflowError as error:
            raise ValueError(
                f"a token id is negative or above 2³²; accepted are 0 to {len(self._vocabulary) - 1}"
            ) from error

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """`decode` of each sequence of ids, with the same default."""
        return super().batch_decode(sequences, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)

    def parse(self, token_ids: Iterable[SupportsIndex]) -> CanonicalCrystal:
        """The crystal of a whole sequence of ids, on its grid.

        Raises:
            SequenceError: with the place and the reason.
        """
        ids = [int(i) for i in (token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids)]
        tokens = [token if token is not None else f"<{i}>" for i, token in zip(ids, self._tokens_of(ids), strict=True)]
        pad, bos, eos = self.pad_token, self.bos_token, self.eos_token  # slow attributes
        while tokens and tokens[0] == pad:
            tokens = tokens[1:]
        begin = 1 if tokens and tokens[0] == bos else 0
        if eos not in tokens:
            # What went wrong earlier is the better reason.
            parse_tokens(tokens[begin:], self._layout)
            raise MissingEndError("the sequence does not end", len(tokens))
        end = tokens.index(eos)
        # Beam search of transformers fills up with the end token where the padding token has id 0.
        if not {pad, eos}.issuperset(tokens[end + 1 :]):
            raise UnexpectedTokenError("something other than padding follows the end", end + 1)
        return parse_tokens(tokens[begin:end], self._layout)

    def _tokens_of(self, ids: list[int]) -> list[str | None]:
        size = len(self._vocabulary)
        return [self._tokenizer.id_to_token(i) if 0 <= i < size else None for i in ids]

    def decode_structure(self, token_ids: Iterable[SupportsIndex], *, primitive: bool = True) -> Any:
        """The crystal of a sequence of ids as a pymatgen `Structure`.

        Raises:
            SequenceError: (a `ValueError`) with the place and the reason.
        """
        return self.parse(token_ids).to_structure(primitive=primitive)

    def batch_decode_structures(self, batch: Iterable[Any], *, primitive: bool = True) -> list[DecodedCrystal]:
        """One `DecodedCrystal` per sequence; a sequence that is no crystal gives its reason."""
        results = []
        for ids in batch:
            text = self.decode(ids)
            try:
                crystal = self.parse(ids)
            except SequenceError as error:
                results.append(DecodedCrystal(None, error, text))
            else:
                results.append(DecodedCrystal(crystal.to_structure(primitive=primitive), None, text, None, crystal))
        return results


def _backend(vocabulary: dict[str, int], digits: int) -> Tokenizer:
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    # Mark where a number splits into tokens: after the point of `4.595`, then after every group of digits.
    places = [r"(?<=\d\.)(?=\d)", *(rf"(?<=\.\d{{{n}}})(?=\d)" for n in range(digits, 7, digits))]
    backend.normalizer = normalizers.Replace(Regex("|".join(places)), "~")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split("|", "isolated"),
            pre_tokenizers.Split(Regex(r"~\d+"), "isolated"),
        ]
    )
    backend.decoder = decoders.WordPiece(prefix="~", cleanup=False)
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A",  # an end behind a prompt would keep models from continuing it
        special_tokens=[("<bos>", vocabulary["<bos>"])],
    )
    return backend


def _canonicalize_item(settings: CanonicalSettings, item: Any) -> CanonicalCrystal | ValueError:
    if isinstance(item, CanonicalCrystal):
        return item
    try:
        return canonicalize(item, settings=settings)
    except ValueError as error:
        return error


def _located(error: ValueError, index: int, total: int) -> ValueError:
    """The error with the place in the batch."""
    if total == 1:
        return error
    if isinstance(error, CrystalInputError):
        return error.located(index, error.name)
    return ValueError(f"structure {index}: {error}")


class _TokenizerMarkerConfig(PreTrainedConfig):
    """`AutoTokenizer.register` asks for a configuration; the language models keep the stock Llama one."""

    model_type = "mat2seq_tokenizer"


def register_mat2seq_tokenizer() -> None:
    """Let `AutoTokenizer` know `Mat2SeqTokenizer` by the name in `tokenizer_config.json`."""
    from transformers import AutoTokenizer

    AutoTokenizer.register(_TokenizerMarkerConfig, tokenizer_class=Mat2SeqTokenizer, exist_ok=True)
