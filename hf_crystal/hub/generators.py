"""The folder of a crystal generator: a stock Llama that serving engines know, and a tokenizer whose code travels."""

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..typing import Generator, ModelName, PropertyModel
from .files import code_files, edit_json, reference, run_check
from .properties import PROBE_CRYSTALS

if TYPE_CHECKING:
    from ..mat2seq.tokenization_mat2seq import Mat2SeqTokenizer

# a second copy of the tokenizer that needs no code: transformers refuses the first without trust_remote_code
STOCK_TOKENIZER = "tokenizer_without_code"
# what the check after an export generates: two cells of rock salt's composition
PROBE_GENERATION = {"composition": {"Na": 1, "Cl": 1}, "num_return": 2, "seed": 0}


def is_generator(model: ModelName | PropertyModel | Generator) -> bool:
    """Whether a model, or what its folder holds, is a crystal generator."""
    if isinstance(model, (str, os.PathLike)):
        return Path(model, "tokenizer_config.json").is_file()
    return hasattr(model, "generate_crystals")


def write_folder(model: Generator, tokenizer: "Mat2SeqTokenizer", folder: Path) -> None:
    """Weights and configuration of a stock Llama, tokenizer, generation settings, and the code that travels.

    `auto_map` names the classes with the grammar, for `trust_remote_code=True`. Without, `AutoModelForCausalLM` takes
    the stock model, and the folder `tokenizer_without_code` holds a stock tokenizer of sequence text.
    """
    from transformers import GenerationConfig, TokenizersBackend

    from ..pipelines.pipeline_crystal_generation import CrystalGenerationPipeline

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = model.config
    GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,  # the default of 50 would cut the distribution
        max_length=config.max_position_embeddings,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(folder)
    for name, text in code_files(type(model), type(tokenizer), CrystalGenerationPipeline).items():
        (folder / name).write_text(text, encoding="utf-8")
    task = {"impl": reference(CrystalGenerationPipeline), "pt": ["AutoModelForCausalLM"], "type": "text"}
    changes = {"auto_map": {"AutoModelForCausalLM": reference(type(model))}}
    edit_json(folder / "config.json", {**changes, "custom_pipelines": {"crystal-generation": task}})
    # transformers asks for a pair: the second is the one backed by tokenizer.json
    edit_json(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, reference(type(tokenizer))]}})
    special = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    stock = TokenizersBackend(
        tokenizer_object=tokenizer.backend_tokenizer, clean_up_tokenization_spaces=False, **special
    )
    stock.save_pretrained(folder / STOCK_TOKENIZER)
    # the name that transformers 4 knows too, which serving engines may still use
    edit_json(folder / STOCK_TOKENIZER / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def _expected_outputs(model: Any, tokenizer: Any) -> dict[str, Any]:
    """What the objects in memory compute, on the CPU, as plain values."""
    import torch

    device = model.device
    model.to("cpu")
    ids = [tokenizer.encode(crystal) for crystal in PROBE_CRYSTALS]
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([row])).logits[0].float().tolist() for row in ids]
    crystals = model.generate_crystals(tokenizer, **PROBE_GENERATION)
    model.to(device)
    texts = tokenizer.decode(ids)
    prompt = f"{tokenizer.bos_token} {texts[0].partition('|')[0]}|"
    return {
        "ids": ids,
        "texts": texts,
        "prompt": prompt,
        "prompt_ids": tokenizer.convert_tokens_to_ids(prompt.split()),
        "logits": logits,
        "generated": [crystal.sequence for crystal in crystals],
        "lattices": [crystal.structure.lattice.matrix.tolist() for crystal in crystals],
    }


def check_folder(folder: str | Path, model: Generator, tokenizer: "Mat2SeqTokenizer") -> None:
    """Load an exported folder in a process without this package and compare outputs bit for bit.

    Without remote code: the model's logits and the tokens of sequence text. With it: the tokens of crystals and
    generation with the grammar.

    Args:
        folder: exported folder.
        model: the generator that was exported.
        tokenizer: the tokenizer that was exported.

    Raises:
        ValueError: see `check_serving`.
        RuntimeError: the folder does not load, or an output differs; the message says which.
    """
    check_serving(folder)
    expected = _expected_outputs(model, tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = Path(scratch, "inputs.json"), Path(scratch, "outputs.json")
        asked = {name: expected[name] for name in ("ids", "texts", "prompt")}
        inputs.write_text(
            json.dumps({**asked, "crystals": PROBE_CRYSTALS, "generation": PROBE_GENERATION}), encoding="utf-8"
        )
        run_check("generator", folder, inputs, outputs)
        received = json.loads(outputs.read_text(encoding="utf-8"))
    wanted = {
        "logits": expected["logits"],
        "texts": expected["texts"],
        "ids of sequence text": [row[:-1] for row in expected["ids"]],  # no end: text may be a prompt
        "ids of a prompt": expected["prompt_ids"],
        "ids of crystals": expected["ids"],
        "generated sequences": expected["generated"],
        "generated lattices": expected["lattices"],
    }
    for name, value in wanted.items():
        if received[name] != value:
            raise RuntimeError(f"{name} of the exported folder differ from those of the generator in memory")


def _llama_weights(num_layers: int, tied: bool) -> set[str]:
    """Names of the weights that vLLM's LlamaForCausalLM reads."""
    attention = [f"self_attn.{name}_proj.weight" for name in "qkvo"]
    mlp = [f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    layer = [*attention, *mlp, "input_layernorm.weight", "post_attention_layernorm.weight"]
    names = {f"model.layers.{index}.{name}" for index in range(num_layers) for name in layer}
    return names | {"model.embed_tokens.weight", "model.norm.weight"} | (set() if tied else {"lm_head.weight"})


def serving_problems(folder: str | Path) -> list[str]:
    """What would keep vLLM from serving a generator's folder as a native LlamaForCausalLM.

    Read off vllm/model_executor/models/llama.py (activation, names of the weights), its attention backends (head
    size) and its registry (architecture); vLLM itself is not needed.

    Args:
        folder: folder of a generator.

    Returns:
        One sentence each; empty where nothing is in the way.
    """
    from safetensors import safe_open
    from tokenizers import Tokenizer

    folder = Path(folder)
    tokenizer_files = [f"{STOCK_TOKENIZER}/tokenizer.json", f"{STOCK_TOKENIZER}/tokenizer_config.json"]
    needed = ["config.json", "generation_config.json", "model.safetensors", *tokenizer_files]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        return [f"missing files: {', '.join(missing)}"]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / STOCK_TOKENIZER / "tokenizer.json"))
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    expected = _llama_weights(config["num_hidden_layers"], config.get("tie_word_embeddings", False))
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    conditions = {
        f"architectures is {config.get('architectures')}, not LlamaForCausalLM": config.get("architectures")
        == ["LlamaForCausalLM"],
        f"model_type is {config['model_type']!r}, not llama": config["model_type"] == "llama",
        "config.json names code for AutoConfig": "AutoConfig" not in config.get("auto_map", {}),
        f"hidden_act is {config['hidden_act']!r}, not silu": config["hidden_act"] == "silu",
        f"head size {head_size} is no multiple of 8 up to 256": head_size % 8 == 0 and head_size <= 256,
        "attention or feed-forward layers have biases": not (config["attention_bias"] or config["mlp_bias"]),
        f"weights {sorted(names ^ expected)[:4]} are missing or unknown": names == expected,
        f"tokenizer.json has {tokenizer.get_vocab_size()} tokens, the model {config['vocab_size']}":
            tokenizer.get_vocab_size() == config["vocab_size"],
        f"config.json lacks one of {', '.join(special)}": all(config.get(name) is not None for name in special),
    }  # fmt: skip
    return [problem for problem, holds in conditions.items() if not holds]


def check_serving(folder: str | Path) -> None:
    """Raise `ValueError` with what would keep vLLM from serving a generator's folder."""
    problems = serving_problems(folder)
    if problems:
        raise ValueError(f"vLLM would not serve {Path(folder).name}: {'; '.join(problems)}")
