"""Load `hf-crystal serve` on this machine with many clients; the exit code says whether each got every answer.

Usage: python scripts/load_test_server.py [--clients 50] [--seconds 60] [--warm-up 10]
The server runs in a process of its own, with the default models. Each client sends one request after the other, in
turn: single predictions, a batch of three crystals of which one is bad, descriptions, a request that is wrong.
"""

import argparse
import asyncio
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PATIENCE = 120  # s; more than the server's own limit


def requests() -> list[tuple[str, dict[str, Any], int]]:
    """Endpoint, request and expected status."""
    texts = [{"text": path.read_text(encoding="utf-8")} for path in sorted(EXAMPLES.glob("*.cif"))]
    found: list[tuple[str, dict[str, Any], int]] = [("/predict", {"crystal": text}, 200) for text in texts]
    found.append(("/predict/batch", {"crystals": [texts[0], {"text": "data_x"}, texts[1]]}, 200))
    found.append(("/describe", {"crystal": texts[0]}, 200))
    found.append(("/predict", {"crystal": {"text": "no crystal"}}, 422))
    return found


def memory_of(process: psutil.Process) -> float:
    """Resident memory of a process and its children, MB."""
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 1e6


async def load(address: str, clients: int, seconds: float) -> tuple[Counter[str], list[float]]:
    """Outcomes and times of what the clients asked."""
    outcomes, times = Counter[str](), []
    end = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)

    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE, limits=limits) as http:

        async def use(number: int) -> None:
            """One request after the other."""
            for endpoint, request, expected in itertools.islice(itertools.cycle(requests()), number, None):
                if time.monotonic() > end:
                    return
                start = time.monotonic()
                try:
                    answer = await http.post(endpoint, json=request)
                    outcomes["right" if answer.status_code == expected else f"{endpoint} {answer.status_code}"] += 1
                except httpx.HTTPError as error:
                    outcomes[f"{endpoint} {type(error).__name__}"] += 1
                times.append(time.monotonic() - start)

        await asyncio.gather(*(use(number) for number in range(clients)))
    return outcomes, times


def main() -> int:
    """Run the test; 0 where every answer was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--warm-up", type=float, default=10, help="Seconds of the same load before memory is measured."
    )
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "hf_crystal.cli.main", "serve", "--port", str(port)]
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        server = subprocess.Popen(words, cwd=scratch, env=environment, stderr=subprocess.DEVNULL)
        try:
            while True:
                try:
                    httpx.get(f"{address}/health", timeout=PATIENCE)
                    break
                except httpx.ConnectError:
                    if server.poll() is not None:
                        raise RuntimeError(f"the server ended with {server.returncode}") from None
                    time.sleep(0.5)
            process = psutil.Process(server.pid)
            asyncio.run(load(address, options.clients, options.warm_up))
            before = memory_of(process)
            start = time.monotonic()
            outcomes, times = asyncio.run(load(address, options.clients, options.seconds))
            wall, after = time.monotonic() - start, memory_of(process)
        finally:
            server.terminate()
            server.wait(PATIENCE)
    times.sort()
    errors = outcomes.total() - outcomes["right"]
    print(f"{options.clients} clients, {wall:.0f} s: {outcomes.total()} answers, {errors} errors", end="")
    print(f", {outcomes.total() / wall:.1f} per s; median {times[len(times) // 2]:.2f} s", end="")
    print(f", p95 {times[int(0.95 * len(times))]:.2f} s, longest {times[-1]:.2f} s")
    print(f"memory of the server with its readers: {before:.0f} MB, then {after:.0f} MB")
    for what, count in outcomes.items():
        print(f"failed: {what}: {count}" if what != "right" else "", end="\n" if what != "right" else "")
    return 1 if errors or server.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
