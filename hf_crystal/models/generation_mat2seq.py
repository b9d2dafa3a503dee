"""Former place of `hf_crystal.mat2seq.modeling_mat2seq`, kept for scripts that import it."""

from ..mat2seq.modeling_mat2seq import (  # noqa: F401
    CrystalPrompt,
    Mat2SeqForCausalLM,
    generate_crystals,
    generate_crystals_for_prompts,
    mat2seq_config,
    parse_composition,
)
