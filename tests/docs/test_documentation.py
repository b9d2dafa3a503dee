"""Documentation: every code block runs, every link within it leads somewhere, Sphinx builds it without a warning."""

import html
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tiny_models import IRON, NACL, SRTIO3

from hf_crystal.checkpoints import embedded_checkpoints, embedded_generators
from hf_crystal.cli.main import run

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LINKED = [*PAGES, *sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("hf_crystal/checkpoints/*/README.md"))]
MEASURED = ("performance.md", "experiments.md")  # their commands are measurements that take hours
RUNNABLE = [
    page
    for page in PAGES
    if page.name not in MEASURED and re.search(r"^```(python|bash)$", page.read_text(encoding="utf-8"), re.MULTILINE)
]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
pytestmark = pytest.mark.docs


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with what the pages speak of: the examples, and a table of one's own."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    rows = [
        {**crystal, "material_id": f"mine-{index}", "energy": -1.0 - index, "split": split}
        for index, crystal in enumerate((NACL, SRTIO3, IRON))
        for split in ("train", "train", "val", "test")
    ]
    for row in rows:
        row["lattice"] = np.ravel(row["lattice"]).tolist()
        row["frac_coords"] = np.ravel(row["frac_coords"]).tolist()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "my_table.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.skipif(not embedded_checkpoints(), reason="this checkout has no embedded checkpoint yet")
@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")  # 0.3333 is read as a third
@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_code_of_the_page_runs(page, folder):
    """Blocks of one page share their names, in order."""
    names: dict[str, object] = {"__name__": "page"}
    for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(code, str(page), "exec"), names)
            continue
        for line in filter(None, code.splitlines()):
            words = shlex.split(line)
            assert words[0] == "hf-crystal", "only our command runs in a block of bash; show others as text"
            assert run(words[1:]) == 0, line


@pytest.mark.slow
@pytest.mark.skipif(not embedded_checkpoints(), reason="this checkout has no embedded checkpoint yet")
@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")
@pytest.mark.parametrize("notebook", sorted(DOCS.rglob("*.ipynb")), ids=name_of)
def test_notebook_runs_and_is_stored_without_results(notebook, folder):
    """Cells run in order, as Jupyter would; Jupyter itself is not needed."""
    names: dict[str, object] = {"__name__": "notebook"}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            exec(compile("".join(cell["source"]), str(notebook), "exec"), names)


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_and_pictures_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"^(\w+/?\w+)$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name_of(page).removesuffix(".md") for page in PAGES} <= {
        *listed,
        "index",
        *(name.removesuffix(".md") for name in MEASURED),
    }


@pytest.mark.network
@pytest.mark.slow
def test_addresses_outside_answer(tmp_path):
    words = [sys.executable, "-m", "sphinx", "-q", "-b", "linkcheck", str(DOCS), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (tmp_path / "output.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_sphinx_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="Sphinx is not installed")
    pytest.importorskip("myst_parser", reason="myst-parser is not installed")
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "explain" / "attention.html").read_text(encoding="utf-8")
    assert "<math" in page
    cards = (tmp_path / "models.html").read_text(encoding="utf-8")
    for name in (*embedded_checkpoints(), *embedded_generators()):
        card = (ROOT / "hf_crystal" / "checkpoints" / name / "README.md").read_text(encoding="utf-8")
        assert re.search(r"^# (.+)$", card, re.MULTILINE).group(1) in html.unescape(cards)
    assert "library_name:" not in cards
    # a page of the documentation loads nothing from elsewhere either
    assert re.findall(r"(?:src|rel=\"stylesheet\"[^>]*href)=\"https?://[^\"]*", page) == []
