"""pin_model and fetch_base_model end to end against a local server that serves a tiny model the way the hubs do."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest

from scripts import fetch_base_model, pin_model
from scripts.lib import base_model, pins
from scripts.lib.config import load_yaml
from scripts.lib.errors import EqaError
from tests.lib.servers import local_server

NAME = "Tiny/Qwen3-VL-Tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def safetensors(tensors: dict[str, list[int]]) -> bytes:
    """A safetensors file of float32 zeros with the given shapes."""
    head, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        size = 4
        for side in shape:
            size *= side
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def model_files() -> dict[str, bytes]:
    size = {"shortest_edge": 65536, "longest_edge": 16777216}
    return {
        "config.json": json.dumps({"architectures": [base_model.ARCHITECTURE], "model_type": "qwen3_vl"}).encode(),
        "tokenizer.json": b'{"model": {}}',
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "preprocessor_config.json": json.dumps({"size": size, "patch_size": 16, "merge_size": 2}).encode(),
        "model.safetensors": safetensors({"a": [100, 30], "b": [500]}),
        "merges.txt": b"a b",
        ".gitattributes": b"*.safetensors filter=lfs",
        "modeling_custom.py": b"raise SystemExit('never run')",
        "training_args.bin": b"\x80\x04pickle",
        "onnx/model.safetensors": b"another",
    }


USED = {
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "model.safetensors",
    "merges.txt",
}


@pytest.fixture
def server(monkeypatch):
    with local_server() as behaviour:
        monkeypatch.setenv("HF_ENDPOINT", behaviour.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", behaviour.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("scripts.lib.download.time.sleep", lambda _: None)
        behaviour.add_hub(NAME, COMMIT, model_files())
        behaviour.add_modelscope(NAME, "master", model_files())
        yield behaviour


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "models.lock.json").write_text('{"models": {}}')
    return tmp_path


def pin(place: Path, source: str = "huggingface", path: str = "", **options: str) -> int:
    (place / "config.yaml").write_text(json.dumps({"model": {"source": source, "name": NAME, "path": path}}))
    line = ["--config-file", str(place / "config.yaml"), "--lock", str(place / "models.lock.json")]
    line += ["--output-dir", str(place / "models/base")]
    for key, value in options.items():
        line += [f"--{key}", value]
    return pin_model.main(line)


def fetch(place: Path, source: str = "huggingface", path: str = "", name: str = NAME) -> int:
    config = json.dumps({"model": {"source": source, "name": name, "path": path}})
    line = ["--pins", str(place / "models.lock.json"), "--config", config, "--output-dir", str(place / "models/base")]
    return fetch_base_model.main(line)


def write_local(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    for name, data in (files or model_files()).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(("source", "revision"), [("huggingface", COMMIT), ("modelscope", "master")])
def test_pin_then_fetch(server, place, source, revision):
    assert pin(place, source) == 0
    record = json.loads((place / "models.lock.json").read_text())["models"][f"{source}:{NAME}"]
    assert record["revision"] == revision
    assert set(record["files"]) == USED
    assert record["files"]["config.json"]["sha256"] == hashlib.sha256(model_files()["config.json"]).hexdigest()
    before = len(server.requests)
    assert fetch(place, source) == 0
    assert len(server.requests) == before, "what was fetched to be pinned is not fetched twice"
    folder = place / "models/base"
    manifest = json.loads((folder / "manifest.json").read_text())
    files = manifest.pop("files")
    assert set(files) == USED == {p.name for p in folder.iterdir()} - {"manifest.json"}
    assert manifest == {
        "name": NAME,
        "source": source,
        "revision": revision,
        "architecture": "Qwen3VLForConditionalGeneration",
        "parameters": 3500,
        "processor_min_pixels": 65536,
    }
    assert not list((place / "models/.download").iterdir())


def test_a_fetch_elsewhere_takes_the_pinned_commit_and_goes_on_after_drops(server, place):
    assert pin(place) == 0
    elsewhere = place / "clone"
    elsewhere.mkdir()
    (elsewhere / "models.lock.json").write_bytes((place / "models.lock.json").read_bytes())
    server.requests.clear()
    server.drops = 3
    server.drop_after = 4000
    assert fetch(elsewhere) == 0
    paths = [path for path, _ in server.requests]
    assert all(path.startswith(f"/{NAME}/resolve/{COMMIT}/") for path in paths), "no branch is asked for"
    assert server.sent_ranges() == ["bytes=4000-", "bytes=8000-", "bytes=12000-"]
    assert (elsewhere / "models/base/model.safetensors").read_bytes() == model_files()["model.safetensors"]


def test_a_killed_fetch_goes_on_in_the_next_run(server, place, capsys):
    assert pin(place) == 0
    elsewhere = place / "clone"
    elsewhere.mkdir()
    (elsewhere / "models.lock.json").write_bytes((place / "models.lock.json").read_bytes())
    server.status[f"/{NAME}/resolve/{COMMIT}/tokenizer.json"] = 503
    assert fetch(elsewhere) == 2
    assert "answers 503, 5 times" in capsys.readouterr().err
    assert not (elsewhere / "models/base").exists()
    server.status.clear()
    server.requests.clear()
    assert fetch(elsewhere) == 0
    assert f"/{NAME}/resolve/{COMMIT}/model.safetensors" not in [path for path, _ in server.requests]


def test_a_file_that_changed_on_the_hub_is_refused_with_both_hashes(server, place, capsys):
    assert pin(place) == 0
    wrong = bytearray(model_files()["model.safetensors"])
    wrong[-1] = 7
    server.files[f"/{NAME}/resolve/{COMMIT}/model.safetensors"] = bytes(wrong)
    elsewhere = place / "clone"
    elsewhere.mkdir()
    (elsewhere / "models.lock.json").write_bytes((place / "models.lock.json").read_bytes())
    assert fetch(elsewhere) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert hashlib.sha256(wrong).hexdigest() in message
    assert hashlib.sha256(model_files()["model.safetensors"]).hexdigest() in message
    assert not (elsewhere / "models/base").exists()


def test_a_hub_whose_listing_and_file_disagree_is_not_pinned(server, place, capsys):
    wrong = bytearray(model_files()["model.safetensors"])
    wrong[-1] = 7
    server.files[f"/{NAME}/resolve/{COMMIT}/model.safetensors"] = bytes(wrong)
    assert pin(place) == 2
    assert "expected sha256" in capsys.readouterr().err
    assert json.loads((place / "models.lock.json").read_text()) == {"models": {}}


def test_an_unpinned_model_is_refused_with_the_command(server, place, capsys):
    assert fetch(place) == 2
    assert "is not pinned in" in (message := capsys.readouterr().err)
    assert "`make pin-model`" in message
    assert server.requests == []


@pytest.mark.parametrize("preset", ["openeqa-t4", "openeqa-80gb"])
def test_an_unpinned_recipe_stops_before_any_job(root, tmp_path, preset):
    config = load_yaml(root / f"config/presets/{preset}.yaml")
    with pytest.raises(EqaError, match=r"model\.name=Qwen/Qwen3-VL-2B-Instruct .* is not pinned .*`make pin-model`"):
        pins.check_pinned(config, tmp_path)


def test_the_demo_needs_no_pin(root, tmp_path):
    pins.check_pinned(load_yaml(root / "config/presets/demo.yaml"), tmp_path)


def test_a_pinned_recipe_passes(server, place):
    assert pin(place) == 0
    (place / "config").mkdir()
    (place / "models.lock.json").rename(place / "config/models.lock.json")
    for source in ("huggingface", "local"):
        pins.check_pinned({"model": {"source": source, "name": NAME}}, place)
    with pytest.raises(EqaError):
        pins.check_pinned({"model": {"source": "modelscope", "name": NAME}}, place)


def test_the_shipped_lock_invents_no_pin(root):
    for key, record in pins.read_model_pins(root / pins.MODELS_LOCK).items():
        assert record["revision"] or key.startswith("local:"), key


def test_a_local_folder_is_pinned_and_copied(place, tmp_path, monkeypatch):
    folder = write_local(tmp_path / "mine")
    monkeypatch.setenv("MY_MODEL", str(folder))
    assert pin(place, "local", "$MY_MODEL") == 0
    assert fetch(place, "local", "$MY_MODEL") == 0
    assert {p.name for p in (place / "models/base").iterdir()} == USED | {"manifest.json"}
    assert (folder / "model.safetensors").is_file(), "the user's folder is left as it is"
    assert str(tmp_path) not in (place / "models/base/manifest.json").read_text()


def test_a_local_copy_of_a_pinned_hub_model_is_accepted_and_an_edited_one_is_not(server, place, tmp_path, capsys):
    assert pin(place) == 0
    folder = write_local(tmp_path / "mine")
    assert fetch(place, "local", str(folder)) == 0
    (folder / "tokenizer.json").write_bytes(b'{"model": {"edited": 1}}')
    assert fetch(place, "local", str(folder)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "tokenizer.json: expected sha256" in message
    assert "found" in message
    (folder / "tokenizer.json").unlink()
    assert fetch(place, "local", str(folder)) == 2
    assert "pinned under huggingface:" in capsys.readouterr().err


def without(*names: str) -> dict[str, bytes]:
    return {name: data for name, data in model_files().items() if name not in names}


def with_config(**changes: object) -> dict[str, bytes]:
    config = json.loads(model_files()["config.json"]) | changes
    return model_files() | {"config.json": json.dumps(config).encode()}


HEAD = model_files()["model.safetensors"]


@pytest.mark.parametrize(
    ("files", "part"),
    [
        (without("model.safetensors"), "only pickle weights (training_args.bin)"),
        (without("model.safetensors", "training_args.bin"), "no model*.safetensors;"),
        (without("config.json"), "no config.json"),
        (without("tokenizer.json"), "no tokenizer.json"),
        (without("preprocessor_config.json"), "no preprocessor_config.json"),
        (with_config(architectures=["Qwen2VLForConditionalGeneration"]), "architectures="),
        (with_config(architectures=None), "architectures="),
        (with_config(quantization_config={"quant_method": "awq"}), "the model is quantized"),
        (model_files() | {"config.json": b"[]"}, "no JSON object"),
        (model_files() | {"config.json": b"{"}, "not JSON"),
        (model_files() | {"model.safetensors": HEAD[:-1]}, "not a whole safetensors file"),
        (model_files() | {"model.safetensors": HEAD + b"x"}, "not a whole safetensors file"),
        (model_files() | {"model.safetensors": b"\x80\x04pickle"}, "not a whole safetensors file"),
        (model_files() | {"model.safetensors": struct.pack("<Q", 1 << 60)}, "not a whole safetensors file"),
        (model_files() | {"model.safetensors": b""}, "not a whole safetensors file"),
        (
            model_files() | {"model.safetensors.index.json": b'{"weight_map": {"a": "model-2.safetensors"}}'},
            "but missing",
        ),
        (model_files() | {"model.safetensors.index.json": b"{}"}, "no weight_map"),
    ],
)
def test_a_folder_that_is_no_whole_qwen3_vl_is_not_pinned(place, tmp_path, capsys, files, part):
    write_local(tmp_path / "mine", files)
    assert pin(place, "local", str(tmp_path / "mine")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert part in lines[0]
    assert json.loads((place / "models.lock.json").read_text()) == {"models": {}}


def test_a_hub_with_pickle_weights_only_is_refused_before_any_download(server, place, capsys):
    server.files.clear()
    server.add_hub(NAME, COMMIT, {"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"\x80"})
    assert pin(place) == 2
    assert "only pickle weights (pytorch_model.bin)" in capsys.readouterr().err
    assert len(server.requests) == 1


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_an_unknown_model_or_revision_is_one_line(server, place, capsys, source):
    assert pin(place, source, revision="nowhere") == 2
    server.files.clear()
    assert pin(place, source) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("pin_model: http://127.0.0.1") for line in lines)
    assert "nowhere" in lines[0]
    assert "model.name" in lines[1]


def test_no_hub_is_one_line(place, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert pin(place) == 2
    assert "HF_ENDPOINT" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("source", "variable"), [("huggingface", "HF_ENDPOINT"), ("modelscope", "MODELSCOPE_ENDPOINT")]
)
@pytest.mark.parametrize(
    "address",
    [
        "http://bob:hunter2@127.0.0.1:9",
        "http://bob:hunter2@[x",
        "http://bob:hun/ter2@127.0.0.1:9",
        "bob:hunter2@127.0.0.1:9",
    ],
)
def test_a_password_in_a_mirrors_address_is_not_told(place, capsys, monkeypatch, source, variable, address):
    monkeypatch.setenv(variable, address)
    assert pin(place, source) == 2
    said = capsys.readouterr().err
    assert "hun" not in said
    assert len(said.strip().splitlines()) == 1


def test_a_full_disk_is_said_before_any_download(server, place, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert pin(place) == 2
    assert "are free" in capsys.readouterr().err
    assert len(server.requests) == 1


def test_the_token_goes_to_the_hub_and_into_no_log(server, place, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_SECRETSECRETSECRET")
    assert pin(place) == 0
    assert all(headers.get("authorization") == "Bearer hf_SECRETSECRETSECRET" for _, headers in server.requests)
    output = capsys.readouterr()
    assert "SECRET" not in output.out + output.err + (place / "models.lock.json").read_text()


def test_the_token_is_not_sent_to_another_host_after_a_redirect(server, place, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_SECRETSECRETSECRET")
    with local_server() as storage:
        storage.files["/blob"] = model_files()["model.safetensors"]
        server.redirects[f"/{NAME}/resolve/{COMMIT}/model.safetensors"] = (
            storage.url.replace("127.0.0.1", "localhost") + "/blob"
        )
        assert pin(place) == 0
        assert len(storage.requests) == 1
        assert "authorization" not in storage.requests[0][1]


@pytest.mark.parametrize("name", ["", "gpt2", "../x", "a/../b", "a/b/c", "http://x/y", "a/b?x"])
def test_a_name_that_is_no_repository_is_refused(place, capsys, name):
    assert fetch(place, name=name) == 2
    assert "is no repository" in capsys.readouterr().err


@pytest.mark.parametrize(
    "models",
    [
        [],
        {"huggingface:" + NAME: {}},
        {"huggingface:" + NAME: {"revision": "a", "files": {"../x": {"size": 1, "sha256": "0" * 64}}}},
        {"huggingface:" + NAME: {"revision": "a", "files": {"x": {"size": 1, "sha256": "zz"}}}},
    ],
)
def test_a_broken_lock_is_one_line(place, capsys, models):
    (place / "models.lock.json").write_text(json.dumps({"models": models}))
    assert fetch(place) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("source", ["demo", "nonsense"])
def test_the_demo_is_not_pinned(place, capsys, source):
    assert pin(place, source) == 2
    assert "needs no pin" in capsys.readouterr().err
