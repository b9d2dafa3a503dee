"""Sphinx: `python -m sphinx -W -b html docs build/docs` (pip install ".[docs]")."""

import contextlib
import io
import os
import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import hf_crystal
from hf_crystal.checkpoints import embedded_checkpoints, embedded_generators
from hf_crystal.cli.main import run

project = "hf_crystal"
author = "The hf_crystal authors"
copyright = f"2026, {author}"
release = hf_crystal.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
exclude_patterns = ["build"]
html_theme = "furo"  # on a phone the contents fold away and wide tables scroll by themselves; fetches no fonts
html_show_sourcelink = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
# formulas as MathML, which browsers draw themselves: MathJax would be fetched from a network
html_math_renderer = "mathml"

# `python -m sphinx -b linkcheck docs build/links` asks whether the addresses answer; these cannot yet, or are examples
linkcheck_ignore = [r"http://localhost"]
linkcheck_timeout = 20


def _write_math(translator, node):
    """Put a formula into the page; docutils knows how."""
    is_block = isinstance(node, nodes.math_block)
    translator.body.append(tex2mathml(node.astext(), as_block=is_block))
    raise nodes.SkipNode


def _put_cards(_, name, source):
    """Include the card of every embedded model, without its front matter, below the text of the page."""
    if name == "models":
        source[0] += "".join(
            f'\n```{{include}} ../hf_crystal/checkpoints/{model}/README.md\n:start-after: "\\n---\\n"\n'
            ":heading-offset: 1\n```\n"
            for model in (*embedded_checkpoints(), *embedded_generators())
        )


def _help_of(*words):
    """What `hf-crystal WORDS --help` prints, and the names of the commands below it."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        run([*words, "--help"])
    listed = text.getvalue().partition("\nCommands:\n")[2].partition("\n\n")[0]
    return text.getvalue().strip(), re.findall(r"^  (\w+)", listed, re.MULTILINE)


def _put_commands(_, name, source):
    """Include the help of every command."""
    if name != "command_line":
        return
    os.environ["COLUMNS"] = "100"
    waiting = [(word,) for word in _help_of()[1]]
    while waiting:
        words = waiting.pop(0)
        text, below = _help_of(*words)
        if below:
            waiting[:0] = [(*words, word) for word in below]
        else:
            source[0] += f"\n## hf-crystal {' '.join(words)}\n\n```text\n{text}\n```\n"


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", _put_cards)
    app.connect("source-read", _put_commands)
    app.add_html_math_renderer("mathml", (_write_math, None), (_write_math, None))
