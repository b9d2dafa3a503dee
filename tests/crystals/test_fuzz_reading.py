"""Damaged files end in a crystal or a reason, by the script that counts thousands of them."""

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from hf_crystal.evaluation.pools import JobPool

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz_reading.py"


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_reading", SCRIPT)
    sys.modules["fuzz_reading"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fuzz_reading"]


def test_seeds_are_crystals_and_mutants_end_in_no_fault(fuzz, tmp_path):
    planted = tmp_path / "planted.vasp"
    planted.write_text(fuzz.PLANTED)
    files = fuzz.seeds(None)[:77]
    assert [fuzz.read(file)[0] for file in files] == ["crystal"] * 77
    jobs = fuzz.mutants(range(150), 1, str(planted), files)
    with JobPool(fuzz.read) as pool:  # in this process: the time of a new one is most of the test
        outcomes = pool.run(jobs)
    kinds = Counter(outcome.value[0] if outcome.value else outcome.reason for outcome in outcomes)
    assert set(kinds) <= set(fuzz.GOOD), kinds
    assert kinds["crystal"] > 10 and kinds["reason"] > 60


def test_faults_are_counted(fuzz, tmp_path, monkeypatch, capsys):
    cif = (SCRIPT.parents[1] / "examples" / "NaCl.cif").read_text()
    lost = cif.replace("data_NaCl", "data_NaCl\n_chemical_formula_sum 'K4 Cl4'")
    assert fuzz.contradiction(lost, [11] * 4 + [17] * 4) and not fuzz.contradiction(lost, [19, 17])

    def fault(_path):
        raise KeyError("of a reader")

    monkeypatch.setattr("hf_crystal.crystals.reading.as_record", fault)
    with JobPool(fuzz.read) as pool:
        assert pool.run([("a.cif", cif.encode())])[0].failure == "error"
    monkeypatch.undo()
    monkeypatch.setattr(fuzz, "JobPool", lambda *_args, **_options: JobPool(lambda _job: ("unforeseen", "why")))
    monkeypatch.setattr(fuzz, "seeds", lambda _folder: [("a.cif", cif.encode())])
    options = fuzz.argparse.Namespace(count=3, data_dir=None, keep=tmp_path / "kept", workers=0, seed=0)
    assert fuzz.main(options) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"mutants": 3, "seed": 0, "unforeseen": 3}
    assert len(list((tmp_path / "kept").iterdir())) == 3
