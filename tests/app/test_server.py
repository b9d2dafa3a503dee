"""The HTTP server and the tools for assistants: real requests, right answers, limits, hostile input, a clean end."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import httpx
import numpy as np
import psutil
import pytest
from pymatgen.core import Lattice, Structure
from tiny_models import NACL, OVERLAPPING

from hf_crystal.app.reading import MAX_BYTES, cost_of
from hf_crystal.app.service import MAX_GENERATED, Service, example_files
from hf_crystal.app.tools import Tools
from hf_crystal.crystals.reading import as_record
from hf_crystal.loading import load_property_pipeline
from hf_crystal.mat2seq.canonicalize import canonicalize

testclient = pytest.importorskip("fastapi.testclient", reason="FastAPI is not installed")
server = pytest.importorskip("hf_crystal.app.server")

TEXTS = {name: path.read_text(encoding="utf-8") for name, path in example_files().items()}
ARRAYS = {**{key: NACL[key] for key in ("lattice", "frac_coords")}, "species": ["Na", "Cl"]}
SHEET = """2
Lattice="2.5 0 0 -1.25 2.165 0 0 0 20" Properties=species:S:1:pos:R:3 pbc="T T F"
B 0.0 0.0 10.0
N 0.0 1.4434 10.0
"""
SECRET = "PLANTED_LINE_7F3A"
HOSTILE = {
    "nested lists": "[" * 490 + "]" * 490,
    "nested objects": '{"structure":' * 100_000,
    "operations": TEXTS["NaCl"] + "loop_\n_symmetry_equiv_pos_as_xyz\n" + "'x,y,z+1/7'\n" * 6000,
    "long operation": TEXTS["NaCl"] + "loop_\n_symmetry_equiv_pos_as_xyz\n'" + "x+" * 20_000 + "x,y,z'\n",
    "blank lines": "data_x\n" + "\n" * 48_000 + "_cell_length_a 5\n",
}


@pytest.fixture(scope="module")
def client(service):
    with testclient.TestClient(server.build_server(Tools(service))) as client:
        yield client


@pytest.fixture(scope="module")
def pipe(tiny_folders):
    return load_property_pipeline(tiny_folders[0], "cpu")


def test_a_prediction_is_that_of_the_pipeline(client, pipe):
    answer = client.post("/predict", json={"crystal": {"text": TEXTS["LiFePO4"], "name": "mine"}})
    assert answer.status_code == 200
    found, expected = answer.json(), pipe(str(example_files()["LiFePO4"]))
    assert {"formation_energy_standard_error", "metal_probability", "is_metal", "warnings"} <= set(found)
    assert (found.pop("source"), found.pop("model")) == ("mine", client.get("/health").json()["models"][0])
    assert found == expected
    arrays = client.post("/predict", json={"crystal": ARRAYS}).json()
    assert arrays["formation_energy"] == pytest.approx(pipe(NACL)["formation_energy"])


def test_in_a_batch_a_bad_crystal_has_its_reason_and_the_others_their_values(client, pipe):
    overlapping = {**ARRAYS, "frac_coords": OVERLAPPING["frac_coords"]}
    crystals = [{"text": TEXTS["NaCl"]}, {"text": "data_x", "name": "cut"}, overlapping, {"text": TEXTS["Si"]}]
    answer = client.post("/predict/batch", json={"crystals": crystals * 5})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result["source"] for result in results[:4]] == ["crystal 0", "cut", "crystal 2", "crystal 3"]
    assert ["error" in result for result in results] == [False, True, True, False] * 5
    for name, place in (("NaCl", 0), ("Si", 19)):
        value = pipe(str(example_files()[name]))["formation_energy"]
        assert results[place]["formation_energy"] == pytest.approx(value, abs=1e-5)
    assert "atoms" in results[2]["error"]


def test_a_sheet_has_a_value_with_a_warning_and_no_sequence(client, tmp_path, pipe):
    (tmp_path / "sheet.xyz").write_text(SHEET, encoding="utf-8")
    found = client.post("/predict", json={"crystal": {"text": SHEET}}).json()
    assert found["formation_energy"] == pytest.approx(pipe(str(tmp_path / "sheet.xyz"))["formation_energy"])
    assert found["warnings"]
    described = client.post("/describe", json={"crystal": {"text": SHEET}})
    assert described.status_code == 422
    assert "pbc" in described.json()["detail"]


def test_crystals_are_generated_as_the_pipeline_does(client, service):
    asked = {"composition": "SrTiO3", "space_group": "Pm-3m", "num": 2, "seed": 0}
    crystals = client.post("/generate", json=asked).json()["crystals"]
    expected = service.generation_pipeline()("SrTiO3", space_group=221, num_return_sequences=2, seed=0)
    assert [crystal["cif"] for crystal in crystals] == [crystal["cif"] for crystal in expected]
    assert crystals[0]["num_atoms"] == 5
    wrong = ({"composition": "Xx2"}, "accepted"), ({"space_group": "P4/nowhere"}, "accepted: a number 1 to 230")
    wrong += (({"space_group": 0}, "accepted: a number 1 to 230"),)
    wrong += (({"composition": "Na500Cl", "candidates": "prototypes"}, "no crystal found for Na500Cl"),)
    for asked, reason in (*wrong, ({"properties": {"charm": 1.0}}, "unknown properties")):
        answer = client.post("/generate", json=asked)
        assert answer.status_code == 422
        assert reason in answer.json()["detail"]


def test_a_description_has_sequence_group_and_formula(client):
    found = client.post("/describe", json={"crystal": {"text": TEXTS["NaCl"]}}).json()
    assert found["sequence"] == canonicalize(as_record(example_files()["NaCl"])).to_text()
    assert (found["formula"], found["space_group"], found["space_group_number"]) == ("NaCl", "Fm-3m", 225)
    assert (found["num_atoms"], found["num_atoms_primitive"], found["crystal_system"]) == (8, 2, "cubic")
    assert client.post("/describe", json={"crystal": {"text": "data_x"}}).status_code == 422


@pytest.mark.parametrize(
    ("address", "request_", "reason"),
    [
        ("/predict", {}, "body.crystal: Field required"),
        ("/predict", {"crystal": {}}, "either text, or lattice"),
        ("/predict", {"crystal": {"text": "x", **ARRAYS}}, "either text, or lattice"),
        ("/predict", {"crystal": {"lattice": NACL["lattice"]}}, "either text, or lattice"),
        ("/predict", {"crystal": {**ARRAYS, "species": ["Na"]}}, "2 atoms"),
        ("/predict", {"crystal": ARRAYS, SECRET: 1}, "a field that is not accepted: see /docs"),
        ("/predict", {"crystal": ARRAYS, "stability_": True}, "a field that is not accepted: is it stability?"),
        ("/predict", SECRET, "a JSON object is expected, with the header Content-Type: application/json"),
        ("/predict", {"crystal": ARRAYS, "model": SECRET}, "model: no such model is served"),
        ("/predict", {"crystal": ARRAYS, "stability": True}, "stability: known phases"),
        ("/predict/batch", {"crystals": []}, "body.crystals"),
        ("/predict/batch", {"crystals": [ARRAYS] * 51}, "body.crystals"),
        ("/generate", {"num": MAX_GENERATED + 1}, "body.num"),
        ("/generate", {"properties": {SECRET: "x"}}, "a valid number"),
        ("/generate", {"composition": "H" * 300}, "body.composition"),
        ("/describe", {"crystal": {"text": SECRET}}, "not a crystal structure"),
    ],
)
def test_a_wrong_request_is_refused_with_a_reason_that_does_not_quote_it(client, address, request_, reason):
    answer = client.post(address, json=request_)
    assert answer.status_code == 422
    assert reason in answer.json()["detail"]
    assert SECRET not in answer.text


def test_what_is_too_large_or_no_json_is_refused(client):
    chunks = (b" " * MAX_BYTES for _ in range(3))  # of a length that is not announced
    for body in (b" " * (2 * MAX_BYTES + 1), chunks):
        answer = client.post("/predict", content=body)
        assert (answer.status_code, answer.json()["detail"][-24:]) == (413, " bytes; no more are read")
    headers = {"Content-Type": "application/json"}
    for body in (b"{", b"[" * 100_000, b'{"crystal":' * 100_000, b"\xff\xfe", b"9" * 5000):
        assert client.post("/predict", content=body, headers=headers).status_code in (400, 422)
    answer = client.post("/predict", content=b'{"crystal": ', headers=headers)
    assert answer.json() == {"detail": "body: no valid JSON, see its character 12"}


def test_a_cell_that_is_dense_may_have_fewer_atoms(client):
    places = [[x / 8, y / 8, z / 8] for x in range(8) for y in range(8) for z in range(8)]
    crystal = {"frac_coords": places, "species": ["Na"] * 512}
    answer = client.post("/describe", json={"crystal": {**crystal, "lattice": (8.0 * np.eye(3)).tolist()}})
    assert (answer.status_code, answer.json()["detail"]) == (
        422,
        "512 atoms in 512 Å³; accepted: up to 1000 atoms, fewer where a cell has less than 4 Å³ per atom",
    )
    assert cost_of(as_record({**crystal, "lattice": 24.0 * np.eye(3)})) == 512


def test_an_entry_of_a_batch_that_is_no_crystal_costs_itself(client):
    entries = [{"text": TEXTS["NaCl"], "name": "salt"}, 5, {"text": 7, "name": SECRET}, {"txt": SECRET}]
    answer = client.post("/predict/batch", json={"crystals": entries})
    salt, *others = answer.json()["results"]
    assert (salt["source"], salt["formula"]) == ("salt", "NaCl")
    assert [(found["source"], found["error"]) for found in others] == [
        ("crystal 1", "an object is expected"),
        ("crystal 2", "text: Input should be a valid string"),
        ("crystal 3", "there is a field that is not accepted: is it text?"),
    ]
    assert SECRET not in answer.text


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_is_refused_quickly(client, kind):
    start = time.monotonic()
    for address in ("/predict", "/describe"):
        assert client.post(address, json={"crystal": {"text": HOSTILE[kind]}}).status_code == 422
    assert time.monotonic() - start < 20
    assert client.get("/health").status_code == 200


def test_a_text_is_never_a_path(client, tmp_path):
    planted = tmp_path / "planted.cif"
    planted.write_text(TEXTS["NaCl"].replace("data_", f"data_{SECRET}", 1))
    texts = [str(planted), f"{planted}\n", *(json.dumps({key: str(planted)}) for key in ("structure", "cif", "file"))]
    for text in texts:
        for address in ("/predict", "/describe"):
            answer = client.post(address, json={"crystal": {"text": text}})
            assert answer.status_code == 422
            assert SECRET not in answer.text


def test_health_metrics_and_page(client, service):
    health = client.get("/health").json()
    named = [*health["models"], health["generator"]]
    assert named == [Path(name).name for name in (*service.property_models, service.generator)]
    client.post("/predict", json={"crystal": {"text": SECRET}})
    metrics = client.get("/metrics").text
    assert re.search(r'hf_crystal_requests_total{endpoint="/predict",status="422"} [1-9]', metrics)
    assert re.search(r'hf_crystal_crystals_total{outcome="failed",task="predict"} [1-9]', metrics)
    assert "process_resident_memory_bytes" in metrics
    assert SECRET not in metrics
    page = client.get("/").text  # redirects to the page
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert sources
    assert all(client.get(source).status_code == 200 for source in sources)  # all of it comes from here
    described = client.get("/openapi.json").json()["components"]["schemas"]
    fields = described["Crystal"]["properties"]
    assert all("description" in field for field in fields.values())
    mixed = {"text": Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}, "Cl"], [[0] * 3, [0.5] * 3]).to(fmt="cif")}
    answers = [client.post("/predict", json={"crystal": crystal}).json() for crystal in (ARRAYS, mixed)]
    assert "disorder" in answers[1]
    assert all(set(answer) <= set(described["Prediction"]["properties"]) for answer in answers)
    assert set(health["digests"]) == set(named)
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in health["digests"].values())
    assert described["Predictions"]["properties"]["results"]["items"]["$ref"].endswith("/Prediction")


def test_a_folder_is_known_by_its_name_alone(client, service, monkeypatch):
    (shown,) = client.get("/health").json()["models"]
    assert client.post("/predict", json={"crystal": ARRAYS, "model": shown}).status_code == 200
    answers = [
        client.get("/health"),
        *(
            client.post("/predict", json={"crystal": ARRAYS, "model": name})
            for name in ("x", *service.property_models)
        ),
    ]
    assert [answer.status_code for answer in answers] == [200, 422, 422]
    assert not any(str(Path(service.property_models[0]).parent) in answer.text for answer in answers)
    copies = Tools(Service([service.property_models[0]] * 2, service.generator))
    assert list(copies.models) == [shown, f"{shown}-2"]
    loud = testclient.TestClient(server.build_server(Tools(service)), raise_server_exceptions=False)
    monkeypatch.setattr(service, "results", lambda *_: (_ for _ in ()).throw(OSError(f"{service.property_models[0]}")))
    broken = loud.post("/predict", json={"crystal": ARRAYS})
    assert (broken.status_code, broken.json()["detail"][:26]) == (500, "the server failed (OSError")
    assert 'hf_crystal_requests_total{endpoint="/predict",status="500"} 1.0' in loud.get("/metrics").text


def test_who_waits_too_long_is_told_so(service, monkeypatch):
    short = testclient.TestClient(server.build_server(Tools(service), time_limit=0.5))
    record = as_record(NACL)
    monkeypatch.setattr(service.readers, "read", lambda sources, then: ((name, record) for name, _ in sources))
    predict = type(service).results

    def slow(*arguments, **options):
        time.sleep(0.4)
        return predict(service, *arguments, **options)

    monkeypatch.setattr(service, "results", slow)
    results = short.post("/predict/batch", json={"crystals": [ARRAYS] * 49}).json()["results"]
    done = ["formation_energy" in result for result in results]
    assert done[0] and not done[-1] and done == sorted(done, reverse=True)
    assert results[-1]["error"] == "not predicted: those before it took more than 0.5 s"
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: short.post("/predict", json={"crystal": ARRAYS}), range(6)))
    assert {answer.status_code for answer in answers} == {200, 503}
    late = next(answer for answer in answers if answer.status_code == 503)
    assert late.headers["Retry-After"]
    assert late.json()["detail"] == "no turn within 0.5 s; try again later"
    failed = done.count(False) + sum(answer.status_code == 503 for answer in answers)
    counted = f'hf_crystal_crystals_total{{outcome="failed",task="predict"}} {failed:.1f}'
    assert counted in short.get("/metrics").text


def test_predictions_do_not_wait_for_generations(client, service, monkeypatch):
    asked, predicted = threading.Event(), threading.Event()

    class Slow:
        tokenizer = None

        def __call__(self, *_, **__):
            asked.set()
            assert predicted.wait(60)
            return []

    monkeypatch.setitem(service._loaded, "generator", Slow())
    with ThreadPoolExecutor(1) as pool:
        generation = pool.submit(client.post, "/generate", json={"composition": "NaCl"})
        assert asked.wait(60)
        answer = client.post("/predict", json={"crystal": ARRAYS})
        predicted.set()
    assert (answer.status_code, generation.result().status_code) == (200, 422)


def test_who_has_gone_waits_no_longer(service, monkeypatch):
    app, drawn = server.build_server(Tools(service)), []

    def slow(composition, **_):
        drawn.append(composition)
        time.sleep(0.5)
        return []

    monkeypatch.setattr(service, "draw", slow)

    async def ask(formula: str, patience: float) -> int:
        body = json.dumps({"composition": formula}).encode()
        scope = {"type": "http", "method": "POST", "path": "/generate", "query_string": b"", "http_version": "1.1",
                 "headers": [(b"content-type", b"application/json")], "root_path": "", "scheme": "http"}  # fmt: skip
        asked, sent = False, []

        async def receive():
            nonlocal asked
            if asked:
                await anyio.sleep(patience)
                return {"type": "http.disconnect"}
            asked = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)
        return sent[0]["status"]

    async def crowd() -> list[int]:
        found = {}

        async def one(formula: str, patience: float) -> None:
            found[formula] = await ask(formula, patience)

        async with anyio.create_task_group() as group:
            group.start_soon(one, "NaCl", 60.0)
            await anyio.sleep(0.1)
            for formula in ("KCl", "KBr", "KI"):
                group.start_soon(one, formula, 0.1)
            await anyio.sleep(0.1)
            group.start_soon(one, "MgO", 60.0)
        return found

    found = anyio.run(crowd)
    assert drawn == ["NaCl", "MgO"]
    assert found == {"NaCl": 422, "KCl": 499, "KBr": 499, "KI": 499, "MgO": 422}  # 422: nothing was found
    metrics = testclient.TestClient(app).get("/metrics").text
    assert 'hf_crystal_requests_total{endpoint="/generate",status="499"} 3.0' in metrics
    assert "hf_crystal_requests_in_progress 1.0" in metrics  # this one


def test_a_body_that_does_not_come_is_not_waited_for(service):
    app = server.build_server(Tools(service), time_limit=0.5)
    head = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/predict", "query_string": b""}
    head["headers"] = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
    parts, sent = [{"type": "http.request", "body": b'{"cry', "more_body": True}], []

    async def receive():
        if not parts:
            await anyio.sleep(60)
        return parts.pop()

    async def send(message):
        sent.append(message)

    async def ask():
        with anyio.fail_after(20):
            await app(head, receive, send)

    anyio.run(ask)
    assert sent[0]["status"] == 408
    assert b"not complete after 0.5 s" in sent[1]["body"]


@pytest.mark.slow
def test_the_command_answers_what_it_began_and_ends(tiny_folders, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "hf_crystal.cli.main", "serve", "--port", str(port)]
    words += ["--model", tiny_folders[0], "--generator", tiny_folders[1]]
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr.readline() == "hf-crystal: loading models\n"
            assert "hf-crystal: serving" in process.stderr.readline()
            for _ in range(100):
                with contextlib.suppress(httpx.ConnectError):
                    assert httpx.get(f"{address}/health", timeout=60).status_code == 200
                    break
                time.sleep(0.1)
            sheet = httpx.post(f"{address}/predict", json={"crystal": {"text": SHEET}}, timeout=60)
            assert sheet.json()["warnings"]  # there, and not on standard error, see below
            with socket.create_connection(("127.0.0.1", port)) as silent:  # one that never asks holds nothing up
                silent.settimeout(60)
                assert silent.recv(1) == b""
            children = psutil.Process(process.pid).children(recursive=True)
            asked = json.dumps({"num": MAX_GENERATED, "temperature": 1.5})
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as begun:
                begun.request("POST", "/generate", asked, {"Content-Type": "application/json"})
                httpx.get(f"{address}/health", timeout=60)  # comes after it
                process.send_signal(signal.SIGTERM)
                with begun.getresponse() as answer:
                    assert answer.status == 200
            assert process.wait(120) == 0
        finally:
            process.kill()
        assert process.stderr.read() == "hf-crystal: stopped\n"
    assert children
    _, left = psutil.wait_procs(children, timeout=20)
    assert [child for child in left if child.status() != psutil.STATUS_ZOMBIE] == []  # nobody may collect orphans
    assert list(tmp_path.iterdir()) == []  # nothing of a request is kept


@pytest.mark.slow
def test_an_assistant_has_the_three_tools(tiny_folders, pipe):
    mcp = pytest.importorskip("mcp", reason="the package mcp is not installed")
    words = ["-m", "hf_crystal.cli.main", "serve", "--mcp", "--model", tiny_folders[0], "--generator", tiny_folders[1]]
    command = mcp.StdioServerParameters(command=sys.executable, args=words, env={**os.environ})

    async def talk():
        async with mcp.Client(command) as client:
            tools = await client.list_tools()
            calls = [
                await client.call_tool("predict", {"crystal": TEXTS["NaCl"]}),
                await client.call_tool("describe", {"crystal": TEXTS["NaCl"]}),
                await client.call_tool("generate", {"composition": "NaCl", "num": 1, "seed": 0}),
                await client.call_tool("predict", {"crystal": str(example_files()["NaCl"])}),
                await client.call_tool("generate", {"compositoin": "NaCl", "num": 0}),
            ]
            return tools, calls

    listed, (predicted, described, generated, path, misspelled) = asyncio.run(talk())
    schemas = {tool.name: tool.input_schema for tool in listed.tools}
    assert sorted(schemas) == ["describe", "generate", "predict"]
    assert Path(tiny_folders[0]).name in schemas["predict"]["properties"]["model"]["description"]
    expected = pipe(str(example_files()["NaCl"]))
    assert predicted.structured_content == {"model": Path(tiny_folders[0]).name, **expected}
    assert described.structured_content["space_group"] == "Fm-3m"
    assert "data_" in generated.structured_content["result"][0]["cif"]
    assert path.is_error
    assert "num: Input should be greater than or equal to 1" in misspelled.content[0].text
    assert "not accepted: is it composition?" in misspelled.content[0].text
    assert "not a crystal structure" in path.content[0].text or "name of a file" in path.content[0].text
