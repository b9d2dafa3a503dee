"""A browser goes through every tab of the web page, at desktop and phone width, with the embedded models.

Needs Gradio, Playwright and Debian's chromium; skipped with the reason where one of them is missing. Screenshots are
written to `$HF_CRYSTAL_SCREENSHOTS` where that is set.
"""

import csv
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytest.importorskip("gradio", reason="Gradio is not installed")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CHROMIUM = shutil.which("chromium")
# without these Debian's chromium looks for Google's hosts
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
PATIENCE = 240_000  # ms; a loaded machine generates slowly
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    # Playwright and the web framework warn about one another's versions
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page, served by `hf-crystal demo` in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "hf_crystal.cli.main", "demo", "--port", str(port)]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as stream:
        server = subprocess.Popen(words, stdout=stream, stderr=stream, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if server.poll() is not None:
                pytest.fail(f"the server ended: {log.read_text()}")
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)  # loading torch and the models
        yield url
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


class Visit:
    """One user's page, with what its console and its network said."""

    def __init__(self, browser, address: str, width: int, height: int):
        self.context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        self.page = self.context.new_page()
        self.address, self.requests, self.complaints = address, [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda line: line.type == "error" and self.complaints.append(line.text))
        self.page.set_default_timeout(PATIENCE)
        self.page.goto(address)
        self.page.wait_for_selector("#predict-button")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def download(self, place: str):
        with self.page.expect_download() as waiting:
            self.page.click(f"{place} a[download]")
        return waiting.value.path()

    def canvas(self, place: str):
        return self.page.frame_locator(f"{place} iframe").first.locator("canvas")

    def screenshot(self, name: str) -> None:
        folder = os.environ.get("HF_CRYSTAL_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    def check(self) -> None:
        """No error in the console, nothing from outside, nothing wider than the window."""
        own = (self.address, "data:", "blob:", "about:")
        assert [url for url in self.requests if not url.startswith(own)] == []
        assert self.complaints == []
        width = self.page.viewport_size["width"]
        assert self.page.evaluate("document.documentElement.scrollWidth") <= width
        self.context.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def visit(request, browser, address):
    opened = Visit(browser, address, *request.param)
    opened.name = request.node.callspec.id
    yield opened
    opened.check()


def test_predict_reads_good_and_bad_files_and_gives_a_table(visit, tmp_path):
    bad = tmp_path / "bad.cif"
    bad.write_text("data_nothing\n_cell_length_a 3\n")
    visit.page.set_input_files("#predict-file input[type=file]", [EXAMPLES / "NaCl.cif", bad])
    visit.page.wait_for_selector("#predict-file :text('bad')")
    visit.page.click("#predict-button")
    visit.page.wait_for_selector("#predict-table table")
    text = visit.page.inner_text("#predict-table")
    assert "NaCl" in text
    assert re.search(r"-?\d\.\d{3} ± 0\.\d{3} eV/atom", text)
    assert "bad.cif: " in text
    rows = list(csv.DictReader(visit.download("#predict-csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0]["formula"] == "NaCl"
    assert float(rows[0]["value"]) < -1.0
    assert rows[-1]["crystal"] == "bad.cif"
    visit.screenshot(f"predict-{visit.name}")


def test_the_view_turns_with_mouse_and_keys(visit):
    visit.page.click("#predict-button")
    canvas = visit.canvas("#predict-view")
    canvas.wait_for()
    visit.page.wait_for_timeout(1000)
    pictures = [canvas.screenshot()]
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    visit.page.mouse.move(*middle)
    visit.page.mouse.down()
    visit.page.mouse.move(middle[0] + 60, middle[1] + 25, steps=4)
    visit.page.mouse.up()
    pictures.append(canvas.screenshot())
    canvas.focus()
    visit.page.keyboard.press("ArrowLeft")
    pictures.append(canvas.screenshot())
    visit.page.keyboard.press("+")
    pictures.append(canvas.screenshot())
    visit.page.keyboard.press("0")
    assert len(set(pictures)) == 4
    assert "arrow keys" in canvas.get_attribute("aria-label")


def test_generate_gives_crystals_and_says_what_cannot_be(visit):
    from pymatgen.core import Composition, Structure

    visit.tab("Generate")
    visit.page.fill("#generate-composition input, #generate-composition textarea", "Xx2O3")
    visit.page.click("#generate-button")
    visit.page.wait_for_selector("#generate-status :text('Xx')")
    visit.page.fill("#generate-composition input, #generate-composition textarea", "SrTiO3")
    visit.page.fill("#generate-num input[type=number]", "2")
    visit.page.click("#generate-button")
    visit.page.wait_for_selector("#generate-gallery article")
    assert "SrTiO3" in visit.page.inner_text("#generate-gallery")
    assert "eV/atom" in visit.page.inner_text("#generate-gallery")
    with zipfile.ZipFile(visit.download("#generate-zip")) as archive:
        crystals = [Structure.from_str(archive.read(name).decode(), fmt="cif") for name in archive.namelist()]
    assert {crystal.composition.reduced_composition for crystal in crystals} == {Composition("SrTiO3")}
    visit.page.wait_for_timeout(1000)
    visit.screenshot(f"generate-{visit.name}")


def test_look_inside_shows_attention_frames_and_the_same_sequence(visit):
    visit.tab("Look inside")
    visit.page.click("#inside-model input")
    visit.page.get_by_role("option", name="crystalframer-mp20").click()
    visit.page.fill("#inside-atom input", "2")
    visit.page.click("#inside-button")
    visit.page.wait_for_selector("#inside-attention img")
    visit.page.wait_for_selector("#inside-frames img")
    assert "Ti2 in block 1" in visit.page.inner_text("#inside-status")
    assert "Pm-3m" in visit.page.inner_text("#inside-sequence")
    for name in ("rotation", "supercell 2x1x1"):
        visit.page.click("#inside-change input")
        visit.page.get_by_role("option", name=name, exact=True).click()
        visit.page.click("#inside-play")
        visit.page.wait_for_selector(f"#inside-proof td:text-is('{name}')")
    assert visit.page.inner_text("#inside-proof").count("✓ the same") == 3
    visit.page.fill("#inside-atom input", "9")
    visit.screenshot(f"inside-{visit.name}")
    visit.page.click("#inside-button")
    visit.page.wait_for_selector("#inside-status :text('atom is 8')")


def test_a_large_cell_and_two_users_at_once(browser, address, tmp_path):
    from pymatgen.core import Structure

    large = Structure.from_file(EXAMPLES / "NaCl.cif")
    large.make_supercell([4, 4, 4])
    large.to(filename=str(tmp_path / "large.cif"))
    first, second = (Visit(browser, address, 1280, 900) for _ in range(2))
    first.page.set_input_files("#predict-file input[type=file]", [tmp_path / "large.cif"])
    first.page.wait_for_selector("#predict-file :text('large')")
    first.page.click("#predict-button")
    second.page.click("#predict-button")
    first.page.wait_for_selector("#predict-table td:text-is('512')")
    second.page.wait_for_selector("#predict-table td:text-is('SrTiO3')")
    for visit in (first, second):
        visit.canvas("#predict-view").wait_for()
        visit.check()
