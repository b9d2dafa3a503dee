"""Crystals sampled for an evaluation, written to disk prompt by prompt: what was sampled is never sampled again."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from hf_crystal.typing import Generator

if TYPE_CHECKING:
    from hf_crystal.mat2seq.tokenization_mat2seq import DecodedCrystal, Mat2SeqTokenizer

logger = logging.get_logger(__name__)

PROMPTS_AT_A_TIME = 64


def sample_prompts(
    model: Generator,
    tokenizer: "Mat2SeqTokenizer",
    prompts: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    num_return: int,
    temperature: float,
    seed: int,
    **options: Any,
) -> list[list["DecodedCrystal"]]:
    """Crystals of each prompt, from the file as far as they are there, otherwise generated and appended to it.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer.
        prompts: Fields of `CrystalPrompt`, as JSON values.
        path: JSON Lines; the first line holds the settings, each further line a prompt and its sequences.
        num_return: Crystals per prompt.
        temperature: 0 for greedy decoding: the likeliest token at each step.
        seed: The prompts from place k on are sampled with seed + k, whichever were sampled before.
        **options: See `generate_crystals_for_prompts`.

    Raises:
        ValueError: If the file holds samples of other settings or prompts.
    """
    from hf_crystal.mat2seq.modeling_mat2seq import generate_crystals_for_prompts

    path = Path(path)
    settings = {"num_return": num_return, "temperature": temperature, "seed": seed, "options": options}
    done = _read(path, settings, prompts)
    before, start_time = len(done), time.monotonic()
    with path.open("a", encoding="utf-8") as file:
        # blocks are cut at fixed places, so that a resumed run draws what one run would have drawn
        for start in range(0, len(prompts), PROMPTS_AT_A_TIME):
            block = range(start, min(start + PROMPTS_AT_A_TIME, len(prompts)))
            missing = [index for index in block if index not in done]
            if not missing:
                continue
            made = generate_crystals_for_prompts(
                model,
                tokenizer,
                [prompts[index] for index in block],
                num_return=num_return,
                temperature=temperature,
                seed=seed + start,
                on_error="return",
                **options,
            )
            for index, crystals in zip(block, made, strict=True):
                if index in done:
                    continue
                done[index] = _as_lines(crystals)
                file.write(
                    json.dumps({"index": index, "prompt": dict(prompts[index]), "crystals": done[index]}) + "\n"
                )
            file.flush()
            pace = (len(done) - before) / (time.monotonic() - start_time)
            logger.info(f"{path.name}: {_progress(len(done), len(prompts), pace, num_return)}")
    return [[_decoded(line, tokenizer) for line in done[index]] for index in range(len(prompts))]


def _progress(done: int, total: int, pace: float, num_return: int) -> str:
    """Crystals so far, crystals per second and time left, from numbers of prompts and prompts per second."""
    left = timedelta(seconds=round((total - done) / pace))
    rate = f"{pace * num_return:.3g} crystals/s"
    return f"{done * num_return:,} of {total * num_return:,} crystals, {rate}, {left} left"


def _as_lines(crystals: Sequence["DecodedCrystal"]) -> list[dict[str, Any]]:
    return [
        {
            "sequence": c.sequence,
            "log_likelihood": c.log_likelihood,
            "error": None if c.error is None else str(c.error),
        }
        for c in crystals
    ]


def _decoded(line: Mapping[str, Any], tokenizer: "Mat2SeqTokenizer") -> "DecodedCrystal":
    import dataclasses

    from hf_crystal.mat2seq.sequence_text import SequenceError
    from hf_crystal.mat2seq.tokenization_mat2seq import DecodedCrystal

    if line["error"] is not None:
        return DecodedCrystal(None, SequenceError(line["error"]), line["sequence"], line["log_likelihood"])
    found = tokenizer.batch_decode_structures([tokenizer.encode(line["sequence"])])[0]
    return dataclasses.replace(found, log_likelihood=line["log_likelihood"])


def _read(path: Path, settings: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]) -> dict[int, Any]:
    """Crystals by place of their prompt; a line that was cut off when the process was killed is dropped."""
    wanted = json.loads(json.dumps({"settings": settings, "num_prompts": len(prompts)}))
    lines = list(_whole_lines(path)) if path.is_file() else []
    if not lines:
        path.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
        return {}
    if lines[0] != wanted:
        raise ValueError(f"{path} holds samples of {lines[0]}, not of {wanted}: remove it or choose another folder")
    done: dict[int, Any] = {}
    for line in lines[1:]:
        if line["prompt"] != json.loads(json.dumps(dict(prompts[line["index"]]))):
            raise ValueError(f"{path} holds samples of another prompt {line['index']}: {line['prompt']}")
        done[line["index"]] = line["crystals"]
    return done


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        path.write_bytes(content[:end])
    for line in content[:end].splitlines():
        yield json.loads(line)
