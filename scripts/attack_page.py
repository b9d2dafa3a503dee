"""Attack the web page for a minute while honest users ask for predictions; the exit code says whether it held.

Usage: python scripts/attack_page.py [--seconds 60] [--attackers 3] [--users 5]
The page runs on this machine in a process of its own. Every honest answer has to arrive and to hold the values that
the pipeline gives; no answer to anybody may hold a line of a file of this machine.
"""

import argparse
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from hf_crystal.checkpoints import DEFAULT_MODEL
from hf_crystal.loading import load_property_pipeline

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SECRET = "PLANTED-LINE-7F3A"
PATIENCE = 300  # s; a loaded machine is slow


def ask(address: str, function: str, data: list[Any]) -> str:
    """The answer of a function of the page, as it comes over the wire."""
    body = json.dumps({"data": data}).encode("utf-8", "surrogatepass")
    request = urllib.request.Request(
        f"{address}/gradio_api/call/{function}", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/{function}/{event}", timeout=PATIENCE) as answer:
        return str(answer.read().decode("utf-8"))


def hostile_requests(planted: Path) -> list[tuple[str, str, list[Any]]]:
    """Name, function and inputs of what a stranger may send."""
    cif, noise = (EXAMPLES / "NaCl.cif").read_text(), random.Random(0).randbytes(100_000)
    texts = {
        "blank lines": "data_x\n" + "\n" * 48_000 + "_cell_length_a 5\n",
        "blank lines in a loop": cif + "loop_\n_a\n_b\n" + " \n" * 24_000,
        "nested lists": "[" * 490 + "]" * 490,
        "nested objects": '{"structure":' * 100_000,
        "JSON names a file": json.dumps({"structure": str(planted)}),
        "JSON names passwd": json.dumps({"cif": "/etc/passwd"}),
        "JSON names a device": json.dumps([{"atoms": "/dev/zero"}]),
        "path": str(planted),
        "path of passwd": "/etc/passwd\n",
        "huge numbers": cif.replace("90", "9" * 4300),
        "infinite cell": cif.replace("90", "1e999"),
        "power": f"{cif}_space_group.transform_BNS_Pp_abc '9**9**9**9,b,c;0,0,0'\n",
        "operations": cif + "loop_\n_symmetry_equiv_pos_as_xyz\n" + "'x,y,z+1/7'\n" * 6000,
        "long operation": cif + "loop_\n_symmetry_equiv_pos_as_xyz\n'" + "x+" * 20_000 + "x,y,z'\n",
        "a line of 10 MB": "data_x\n_cell_length_a " + "1" * 10_000_000,
        "binary": noise.decode("latin-1"),
        "many sites": json.dumps({"cell": [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "numbers": [1] * 200_000}),
    }
    found = [(name, "predict", [None, text, "", DEFAULT_MODEL]) for name, text in texts.items()]
    for path in (str(planted), "/etc/passwd", "/dev/zero"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        found.append(("file of the server", "predict", [[file], "", "", DEFAULT_MODEL]))
    found.append(("example that is a path", "predict", [None, "", str(planted), DEFAULT_MODEL]))
    found.append(("model that is a folder", "predict", [None, "", "NaCl", str(planted.parent)]))
    found.append(("look inside", "look_inside", [None, str(planted), "", DEFAULT_MODEL, 1e300, 1, -5]))
    found.append(("composition", "generate", ["Sr9" * 50_000, "any", 3, 1e300, 1e300, "1e400", "x"]))
    return found


def main() -> int:
    """Run the attack; 0 where the page held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--attackers", type=int, default=3)
    parser.add_argument("--users", type=int, default=5)
    options = parser.parse_args()
    crystals = sorted(EXAMPLES.glob("*.cif"))
    pipe = load_property_pipeline(DEFAULT_MODEL, "cpu")
    targets = pipe.model.config.target_names
    expected = {
        path: [f"<b>{result[name]:.3f}</b>" for name in targets]
        for path, result in zip(crystals, pipe([str(path) for path in crystals], batch_size=1), strict=True)
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    hostile, failures = Counter[str](), []
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        planted = Path(scratch, "planted.cif")
        planted.write_text(f"data_{SECRET}\n_cell_length_a {SECRET}\n")
        markers = [SECRET, *Path("/etc/passwd").read_text().splitlines()[:1]]
        words = [sys.executable, "-m", "hf_crystal.cli.main", "demo", "--port", str(port)]
        server = subprocess.Popen(words, cwd=scratch, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            _wait_for(address, server)
            ask(address, "predict", [None, "", "NaCl", DEFAULT_MODEL])  # loads the model, starts the readers
            end = time.monotonic() + options.seconds

            def attack(number: int) -> None:
                """Send everything again and again, each attacker from another place on."""
                requests = hostile_requests(planted)
                for name, function, data in itertools.islice(itertools.cycle(requests), 7 * number, None):
                    if time.monotonic() > end:
                        return
                    try:
                        answer = ask(address, function, data)
                    except (OSError, ValueError) as error:  # refused by the web server itself
                        answer = getattr(error, "reason", "") and str(error)
                    hostile[name] += 1
                    if any(marker in answer for marker in markers):
                        failures.append(f"{name}: a line of a file was in the answer")

            def use(number: int) -> None:
                """Ask for one good crystal after the other."""
                for path in itertools.islice(itertools.cycle(crystals), number, None):
                    if time.monotonic() > end:
                        return
                    start = time.monotonic()
                    try:
                        answer = ask(address, "predict", [None, path.read_text(), "", DEFAULT_MODEL])
                    except OSError as error:
                        failures.append(f"{path.name}: no answer ({error})")
                        continue
                    waits.append(time.monotonic() - start)
                    if not all(value in answer for value in expected[path]):
                        failures.append(f"{path.name}: wrong answer {answer[:300]}")

            threads = [threading.Thread(target=attack, args=(number,)) for number in range(options.attackers)]
            threads += [threading.Thread(target=use, args=(number,)) for number in range(options.users)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if server.poll() is not None:
                failures.append(f"the server ended with {server.returncode}")
        finally:
            server.terminate()
            server.wait(60)
    waits.sort()
    print(f"{hostile.total()} hostile requests of {len(hostile)} kinds, {len(waits)} honest answers", end="")
    print(f", median {waits[len(waits) // 2]:.1f} s, longest {waits[-1]:.1f} s" if waits else "")
    for failure in failures:
        print(f"failed: {failure}")
    return 1 if failures or not waits or not hostile else 0


def _wait_for(address: str, server: "subprocess.Popen[bytes]") -> None:
    """Until the page answers.

    Raises:
        RuntimeError: the server ended.
    """
    while server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=PATIENCE).close()
            return
        except urllib.error.URLError:
            time.sleep(0.5)
    raise RuntimeError(f"the server ended with {server.returncode}")


if __name__ == "__main__":
    sys.exit(main())
