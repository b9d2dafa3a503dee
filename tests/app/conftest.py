"""Tiny models behind the page and the servers."""

import pytest
import torch
from tiny_models import WITH_ERROR_HEAD, save_tiny_model

from hf_crystal import Mat2SeqForCausalLM, Mat2SeqTokenizer
from hf_crystal.app.service import Service
from hf_crystal.mat2seq.modeling_mat2seq import mat2seq_config


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory) -> tuple[str, str]:
    """Folders of a property model and of a generator."""
    folder = tmp_path_factory.mktemp("generator")
    tokenizer = Mat2SeqTokenizer()
    torch.manual_seed(0)
    Mat2SeqForCausalLM(mat2seq_config("tiny", tokenizer, max_position_embeddings=300)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = save_tiny_model(tmp_path_factory.mktemp("model"), "crystalframer", **WITH_ERROR_HEAD)
    return str(model), str(folder)


@pytest.fixture(scope="session")
def service(tiny_folders) -> Service:
    model, generator = tiny_folders
    return Service([model], generator)
