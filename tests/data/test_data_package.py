"""The data package is cheap to import and exports what it says."""

import subprocess
import sys

import hf_crystal.data


def test_every_public_name_is_there():
    for name in hf_crystal.data.__all__:
        assert getattr(hf_crystal.data, name) is not None
    assert set(hf_crystal.data.__all__) <= set(dir(hf_crystal.data))


def test_import_loads_neither_torch_nor_datasets():
    code = (
        "import sys, hf_crystal.data; sys.exit(bool({'torch', 'datasets', 'pymatgen', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
