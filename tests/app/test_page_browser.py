"""A browser goes through every tab of the web page, at desktop and phone width, with the embedded models.

Needs Gradio, Playwright and Debian's chromium; skipped with the reason where one of them is missing, an error where
`$HF_CRYSTAL_REQUIRE_BROWSER` is 1. Screenshots are written to `$HF_CRYSTAL_SCREENSHOTS` where that is set.
"""

import csv
import importlib.util
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

CHROMIUM = shutil.which("chromium")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
if MISSING:
    if os.environ.get("HF_CRYSTAL_REQUIRE_BROWSER") == "1":
        raise RuntimeError(f"the tests of the web page need {', '.join(MISSING)}")
    pytest.skip(f"not installed: {', '.join(MISSING)}", allow_module_level=True)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# without these Debian's chromium looks for Google's hosts
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
PATIENCE = 120_000  # ms; a loaded machine is slow
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
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
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


class Visit:
    """One user's page, with what its console and its network said."""

    def __init__(self, browser, address: str, width: int = 1280, height: int = 900):
        self.context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        self.page = self.context.new_page()
        self.address, self.requests, self.complaints = address, [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda line: line.type == "error" and self.complaints.append(line.text))
        self.page.set_default_timeout(PATIENCE)
        self.page.goto(address)
        self.page.get_by_role("tab", name="Predict").wait_for()  # a link may open another tab

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def download(self, place: str):
        with self.page.expect_download() as waiting:
            self.page.click(f"{place} a[download]")
        return waiting.value.path()

    def canvas(self, place: str):
        return self.page.frame_locator(f"{place} iframe").first.locator("canvas")

    def draws(self, canvas) -> bytes:
        """The picture on a canvas, once there is one."""
        canvas.wait_for()
        canvas.evaluate("canvas => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return canvas.screenshot()

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


@pytest.fixture(scope="module", params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def opened(request, browser, address):
    """One page for each width; every test uses a tab that the others left alone, or says what it wants anew."""
    user = Visit(browser, address, *request.param)
    user.name = "desktop" if request.param[0] > 600 else "phone"
    yield user
    user.context.close()


@pytest.fixture
def visit(opened):
    yield opened
    opened.check()


def test_every_tab_is_in_sight_and_keys_reach_it(visit):
    for name in ("Predict", "Generate", "Look inside"):
        assert visit.page.get_by_role("tab", name=name).is_visible()
    visit.page.get_by_role("tab", name="Predict").focus()
    visit.page.keyboard.press("Tab")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector("#generate-button", state="visible")
    visit.tab("Predict")


def test_predict_reads_good_and_bad_files_and_gives_a_table(visit, tmp_path):
    bad = tmp_path / "bad.cif"
    bad.write_text("data_nothing\n_cell_length_a 3\n")
    visit.page.set_input_files("#predict-file input[type=file]", [EXAMPLES / "NaCl.cif", bad])
    visit.page.wait_for_selector("#predict-file :text('bad')")
    visit.page.focus("#predict-button")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector("#predict-table table")
    text = visit.page.inner_text("#predict-table")
    assert "NaCl" in text
    assert re.search(r"-?\d\.\d{3} ± 0\.\d{3} eV/atom", text)
    assert "bad.cif: " in text
    rows = list(csv.DictReader(visit.download("#predict-csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0]["formula"] == "NaCl"
    assert float(rows[0]["value"]) < -1.0
    assert rows[-1]["crystal"] == "bad.cif"
    visit.draws(visit.canvas("#predict-view"))
    visit.screenshot(f"predict-{visit.name}")


def test_the_view_turns_with_mouse_and_keys(visit):
    canvas = visit.canvas("#predict-view")
    pictures = [visit.draws(canvas)]
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    visit.page.mouse.move(*middle)
    visit.page.mouse.down()
    visit.page.mouse.move(middle[0] + 60, middle[1] + 25, steps=4)
    visit.page.mouse.up()
    pictures.append(visit.draws(canvas))
    canvas.focus()
    for key in ("ArrowLeft", "+"):
        visit.page.keyboard.press(key)
        pictures.append(visit.draws(canvas))
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
    assert "num_return_sequences=2" in visit.page.inner_text("#generate-python")
    with zipfile.ZipFile(visit.download("#generate-zip")) as archive:
        crystals = [Structure.from_str(archive.read(name).decode(), fmt="cif") for name in archive.namelist()]
    assert {crystal.composition.reduced_composition for crystal in crystals} == {Composition("SrTiO3")}
    visit.draws(visit.canvas("#generate-gallery"))
    visit.screenshot(f"generate-{visit.name}")


def test_look_inside_shows_attention_frames_and_the_same_sequence(visit):
    visit.tab("Look inside")
    visit.page.click("#inside-model input")
    visit.page.get_by_role("option", name="crystalframer-mp").click()
    visit.page.fill("#inside-atom input", "2")
    visit.page.click("#inside-button")
    visit.page.wait_for_selector("#inside-attention img")
    visit.page.wait_for_selector("#inside-frames img")
    assert "Ti2 in block 1" in visit.page.inner_text("#inside-status")
    assert "Pm-3m" in visit.page.inner_text("#inside-sequence")
    visit.page.click("#inside-change input")
    visit.page.get_by_role("option", name="all of them").click()
    visit.page.click("#inside-play")
    visit.page.wait_for_selector("#inside-proof td:text-is('supercell 2x2x2')")
    assert visit.page.inner_text("#inside-proof").count("✓ the same") == 7
    visit.draws(visit.canvas("#inside-view"))
    visit.screenshot(f"inside-{visit.name}")
    visit.page.fill("#inside-atom input", "9")
    visit.page.click("#inside-button")
    visit.page.wait_for_selector("#inside-status :text('no atom 9')")


def test_a_link_sets_the_fields_and_two_crystals_stand_side_by_side(browser, address):
    wanted = "?tab=generate&formula=TiO2&space_group=P4_2/mnm&colors=vesta&seed=7&num=many"
    visit = Visit(browser, f"{address}/{wanted}")
    page = visit.page
    page.wait_for_selector("#generate-button", state="visible")
    assert page.input_value("#generate-composition input, #generate-composition textarea") == "TiO2"
    found = {name: page.input_value(f"#generate-{name} input") for name in ("group", "colors", "seed")}
    assert found == {"group": "P4_2/mnm", "colors": "vesta", "seed": "7"}
    assert page.input_value("#generate-num input[type=number]") == "3"  # "many" is no number
    page.goto(address)
    page.wait_for_selector("#predict-button")
    page.set_input_files("#predict-file input[type=file]", [EXAMPLES / "MgO.cif", EXAMPLES / "NaCl.cif"])
    page.wait_for_selector("#predict-file :text('NaCl')")
    page.click("#predict-button")
    page.wait_for_selector("#predict-other", state="visible")
    page.click("#predict-other input")
    page.get_by_role("option", name="NaCl.cif").click()
    page.wait_for_selector("#predict-view :text('different crystals')")
    assert page.locator("#predict-view iframe").count() == 2
    assert page.get_attribute("#predict-python a", "href") == "?tab=predict&model=crystalformer-mp&colors=jmol"
    visit.screenshot("compare")
    visit.context.close()


def test_a_large_cell_and_two_users_at_once(browser, address, tmp_path):
    from pymatgen.core import Structure

    large = Structure.from_file(EXAMPLES / "NaCl.cif")
    large.make_supercell([4, 4, 4])
    large.to(filename=str(tmp_path / "large.cif"))
    first, second = Visit(browser, address), Visit(browser, address)
    first.page.set_input_files("#predict-file input[type=file]", [tmp_path / "large.cif"])
    first.page.wait_for_selector("#predict-file :text('large')")
    first.page.click("#predict-button")
    second.page.click("#predict-button")
    first.page.wait_for_selector("#predict-table td :text-is('512 atoms')")
    second.page.wait_for_selector("#predict-table td:text-is('SrTiO3')")
    assert not first.page.is_visible("#predict-table td:text-is('SrTiO3')")  # nobody sees the crystals of the other
    for visit in (first, second):
        visit.draws(visit.canvas("#predict-view"))
        visit.check()
        visit.context.close()
