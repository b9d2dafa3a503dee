"""Export → push to a Hub on this machine → load by name: same outputs; faults on the way leave nothing half-done."""

import json
import shutil

import pytest
import torch
from hub_exports import METRICS, run_without_package, tiny_generator
from hub_server import TOKEN, USER, Repository
from huggingface_hub.errors import HfHubHTTPError
from tiny_models import IRON, NACL, WITH_ERROR_HEAD, tiny_model

from hf_crystal import CrystalFeatureExtractor
from hf_crystal.hub import planned_push, push_folder

# huggingface_hub 2.4 passes a file as data= to httpx2, which wants content=
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def push(hub, folder, repository="tiny", token=TOKEN, **options):
    return push_folder(folder, repository, token=token, endpoint=hub.address, **options)


def files(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_every_file_arrives_and_large_ones_by_lfs(hub, exported_property):
    pushed = push(hub, exported_property)
    assert pushed.model == f"{hub.address}/{USER}/tiny"
    held = hub.repositories["models", f"{USER}/tiny"]
    assert held.files == {**files(exported_property), ".gitattributes": b""}
    assert held.commits == 1
    assert list(hub.large_files.values()) == [(exported_property / "model.safetensors").read_bytes()]


def test_what_would_be_sent_is_what_is_sent(hub, exported_property):
    plan = planned_push(exported_property, f"{USER}/tiny")
    assert not hub.repositories
    push(hub, exported_property)
    for kind, name in (("models", f"{USER}/tiny"), ("datasets", f"{USER}/tiny-results")):
        sent = {key: len(data) for key, data in hub.repositories[kind, name].files.items() if key != ".gitattributes"}
        assert plan[name] == sent


def test_results_become_a_data_set(hub, exported_property):
    pushed = push(hub, exported_property)
    assert pushed.results == f"{hub.address}/datasets/{USER}/tiny-results"
    held = hub.repositories["datasets", f"{USER}/tiny-results"].files
    assert json.loads(held["metrics.json"]) == METRICS
    rows = [json.loads(line) for line in held["results.jsonl"].decode().splitlines()]
    mae = next(row for row in rows if row["figure"] == "mae" and row["setting"] == "band_gap")
    assert (mae["value"], mae["unit"], mae["samples"]) == (0.5678, "eV", 20)
    assert mae["model"] == f"{USER}/tiny"
    assert "license: cc-by-4.0" in held["README.md"].decode()


def test_property_model_loads_by_name_without_the_package(hub, exported_property, tmp_path):
    push(hub, exported_property)
    code = f"""
    import json, sys, torch
    from transformers import AutoFeatureExtractor, AutoModelForSequenceClassification
    extractor = AutoFeatureExtractor.from_pretrained(sys.argv[1], trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
    with torch.no_grad():
        print(json.dumps(model(**extractor({[NACL, IRON]!r})).logits.tolist()))
    """
    done = load_by_name(hub, code, tmp_path)
    with torch.no_grad():
        expected = tiny_model("crystalframer", **WITH_ERROR_HEAD)(**CrystalFeatureExtractor()([NACL, IRON])).logits
    assert json.loads(done.stdout.splitlines()[-1]) == expected.tolist()


def test_generator_loads_by_name_without_the_package(hub, exported_generator, tmp_path):
    push(hub, exported_generator)
    code = """
    import json, sys, torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    stock = AutoModelForCausalLM.from_pretrained(sys.argv[1])
    with torch.no_grad():
        logits = stock(input_ids=torch.tensor([[1, 5, 6]])).logits[0, -1].tolist()
    export_check.show_structure_packages()
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
    crystal = model.generate_crystals(tokenizer, composition={"K": 1, "Br": 1}, seed=5)[0]
    print(json.dumps([type(stock).__name__, logits, crystal.sequence]))
    """
    name, logits, sequence = json.loads(load_by_name(hub, code, tmp_path).stdout.splitlines()[-1])
    model, tokenizer = tiny_generator()
    assert name == "LlamaForCausalLM"
    with torch.no_grad():
        assert logits == model(input_ids=torch.tensor([[1, 5, 6]])).logits[0, -1].tolist()
    assert sequence == model.generate_crystals(tokenizer, composition={"K": 1, "Br": 1}, seed=5)[0].sequence


def load_by_name(hub, code, scratch):
    """Run code with the repository's name, an empty cache and this Hub."""
    done = run_without_package(
        code,
        f"{USER}/tiny",
        scratch,
        HF_ENDPOINT=hub.address,
        HF_HUB_OFFLINE="0",
        HF_HUB_DISABLE_XET="1",
        HF_HOME=str(scratch / "home"),
        OMP_NUM_THREADS=str(torch.get_num_threads()),
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("request_", ["PUT /lfs/", "POST /api/repos/create", "/preupload/", "/commit/"])
def test_interrupted_upload_is_taken_up_again(hub, exported_property, request_):
    hub.fail(request_, times=2)
    push(hub, exported_property)
    held = hub.repositories["models", f"{USER}/tiny"]
    assert held.files == {**files(exported_property), ".gitattributes": b""}
    assert held.commits == 1


def test_upload_given_up_leaves_nothing_and_the_next_sends_the_rest(hub, exported_property):
    hub.fail("/models/somebody/tiny/commit/", times=100)
    with pytest.raises(ConnectionError, match="was interrupted 3 times .* run the same command again"):
        push(hub, exported_property)
    assert set(hub.repositories["models", f"{USER}/tiny"].files) == {".gitattributes"}
    assert "results.jsonl" in hub.repositories["datasets", f"{USER}/tiny-results"].files
    sent = hub.count("PUT /lfs/")
    hub.fail("/models/somebody/tiny/commit/", times=0)
    push(hub, exported_property)
    assert hub.repositories["models", f"{USER}/tiny"].files["model.safetensors"]
    assert hub.count("PUT /lfs/") == sent, "large files are not sent twice"


def test_wrong_token_is_named_before_anything_is_sent(hub, exported_property):
    with pytest.raises(ValueError, match=r"refuses the token \(401\).*HF_TOKEN"):
        push(hub, exported_property, token="hf_wrong")
    assert hub.repositories == {}


def test_missing_rights_are_named(hub, exported_property):
    with pytest.raises(HfHubHTTPError, match="rights to create a dataset under the namespace other"):
        push(hub, exported_property, "other/tiny")
    assert hub.count("create") == 1, "no further attempt"


def test_existing_repository_is_replaced_on_request_only(hub, exported_property, exported_generator):
    push(hub, exported_property)
    before = dict(hub.repositories["models", f"{USER}/tiny"].files)
    with pytest.raises(
        ValueError, match=rf"model repository {USER}/tiny exists already and holds \d+ files .*overwrite"
    ):
        push(hub, exported_generator)
    assert hub.repositories["models", f"{USER}/tiny"].files == before
    push(hub, exported_generator, overwrite=True)
    held = hub.repositories["models", f"{USER}/tiny"]
    assert held.files == {**files(exported_generator), ".gitattributes": b""}, "no file of the earlier model is left"
    assert held.commits == 2


def test_a_data_set_of_somebody_else_is_not_replaced(hub, exported_property):
    hub.repositories["datasets", f"{USER}/tiny-results"] = Repository(files={"measurements.csv": b"1"})
    with pytest.raises(ValueError, match=f"dataset repository {USER}/tiny-results exists already and holds 1 files"):
        push(hub, exported_property)
    assert ("models", f"{USER}/tiny") not in hub.repositories


def test_private_repositories(hub, exported_property):
    push(hub, exported_property, private=True)
    assert all(repository.private for repository in hub.repositories.values())


def test_a_folder_that_is_no_export_is_refused(hub, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="lacks model.safetensors, README.md, LICENSE; see hf-crystal export"):
        push(hub, tmp_path)
    assert hub.log == []


def test_only_what_an_export_is_made_of_leaves_the_machine(hub, exported_generator, tmp_path):
    expected = files(exported_generator)
    folder, secret = tmp_path / "export", tmp_path / "secret.txt"
    shutil.copytree(exported_generator, folder)
    secret.write_text("a key")
    for name in (".env", "optimizer.pt", "optimizer.safetensors", "training_args.bin", "notes.txt", "sub/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("a key")
    (folder / "linked.py").symlink_to(secret)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/tokenizer.json").write_text("a key")
    (folder / "code").symlink_to(tmp_path / "elsewhere")
    push(hub, folder)
    assert hub.repositories["models", f"{USER}/tiny"].files == {**expected, ".gitattributes": b""}
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to(secret)
    with pytest.raises(ValueError, match="lacks LICENSE; see hf-crystal export .no links"):
        push(hub, folder, overwrite=True)
