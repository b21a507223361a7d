"""prepare_ollama and import_ollama. The server is a stand-in (tests/lib/ollama_standin.py) here, a real one in
tests/e2e/test_ollama_real.py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import import_ollama, prepare_ollama
from scripts.lib import progress
from scripts.lib.errors import EqaError
from scripts.lib.files import read_json, write_json, write_manifest
from scripts.lib.ollama_folder import check_shards, mend_for_ollama, ollama_files, ollama_view
from tests.lib import serving_data
from tests.lib.project import ROOT

SETTINGS = {
    "deliver": {"ollama": True},
    "serve": {"model_name": "openeqa-test", "ollama_quantize": ""},
    "predict": {"max_new_tokens": 16},
}


@pytest.fixture
def results(tmp_path) -> Path:
    """results/ with a mended merged folder, a Modelfile, GGUF switched off and a test part."""
    results = tmp_path / "results"
    manifest = serving_data.write_model_folder(results / "merged")
    mend_for_ollama(manifest.parent)
    write_manifest(manifest.parent)
    test = serving_data.write_test_part(results, ["What color is the sofa?"])
    write_json(results / "gguf/manifest.json", {"status": "disabled", "key": "deliver.gguf"})
    assert prepare(results) == 0
    assert test.is_file()
    return results


def prepare(results: Path, **predict) -> int:
    config = {"predict": {"max_new_tokens": 16, "decoding": "greedy", **predict}, "frames": {"count": 8}}
    return prepare_ollama.main(
        [
            *("--merged", str(results / "merged/manifest.json"), "--budget", str(results / "sft/token_budget.json")),
            *("--config", json.dumps(config), "--output", str(results / "ollama/Modelfile")),
        ]
    )


def arguments(results: Path, **serve) -> list[str]:
    config = {**SETTINGS, "serve": {**SETTINGS["serve"], **serve}}
    return [
        *("--merged", str(results / "merged/manifest.json"), "--modelfile", str(results / "ollama/Modelfile")),
        *("--gguf", str(results / "gguf/manifest.json"), "--test", str(results / "sft/test.json")),
        *("--config", json.dumps(config), "--output", str(results / "ollama/import.json")),
        *("--work-dir", str(results.parent / "work")),
    ]


# ------------------------------------------------------------------------------------------------ the folder


def test_a_folder_of_transformers_5_is_unreadable_until_mended(tmp_path):
    folder = serving_data.write_model_folder(tmp_path / "merged").parent
    with pytest.raises(EqaError, match=r"preprocessor_config\.json"):
        ollama_view(folder)
    added = mend_for_ollama(folder)
    assert "preprocessor_config.json" in added
    assert "config.json: text_config.rope_theta" in added
    view = ollama_view(folder)
    assert view["rope.freq_base"] == 5000000
    assert view["rope.dimension_sections"] == [12, 10, 10, 0]
    assert (view["vision.shortest_edge"], view["vision.longest_edge"]) == (1024, 16777216)
    assert view["tokenizer.ggml.pre"] == "qwen2"
    assert view["tokenizer.ggml.eos_token_id"] == 2
    assert view["tensors"] == 4


def test_mending_twice_changes_nothing(tmp_path):
    folder = serving_data.write_model_folder(tmp_path / "merged").parent
    mend_for_ollama(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert mend_for_ollama(folder) == []
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_transformers_names_stay_beside_the_mended_ones(tmp_path):
    folder = serving_data.write_model_folder(tmp_path / "merged").parent
    mend_for_ollama(folder)
    text = read_json(folder / "config.json")["text_config"]
    assert text["rope_parameters"]["rope_theta"] == text["rope_theta"]
    assert text["rope_scaling"] == {"mrope_interleaved": True, "mrope_section": [12, 10, 10], "rope_type": "default"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "model-00002-of-00002.safetensors: this shard"),
        (lambda f: (f / "model-00001-of-00002.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{"), "no safetensors file"),
        (lambda f: cut(f / "model-00001-of-00002.safetensors"), "it is cut short"),
        (lambda f: serving_data.write_safetensors(f / "model-00001-of-00002.safetensors", ["t0.a"]), "tensor t0.b"),
        (lambda f: [p.unlink() for p in f.glob("*.safetensors")], "missing"),
    ],
)
def test_incomplete_weights_are_named(tmp_path, spoil, said):
    folder = serving_data.write_model_folder(tmp_path / "merged").parent
    spoil(folder)
    with pytest.raises(EqaError, match=said):
        check_shards(folder)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.json", {"architectures": ["LlamaForCausalLM"]}, "architecture 'LlamaForCausalLM'"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "x"}}}, "is not Qwen2's"),
        ("tokenizer_config.json", {"eos_token": "<eos>"}, "eos_token='<eos>' is no added token"),
        ("preprocessor_config.json", {"size": {}}, "vision.longest_edge=0"),
    ],
)
def test_what_ollama_would_misread_is_refused(tmp_path, file, change, said):
    folder = serving_data.write_model_folder(tmp_path / "merged").parent
    mend_for_ollama(folder)
    write_json(folder / file, {**read_json(folder / file), **change})
    with pytest.raises(EqaError, match=said):
        ollama_view(folder)


def test_our_own_records_are_not_uploaded(tmp_path):
    folder = serving_data.write_model_folder(tmp_path / "merged").parent
    write_json(folder / "verify.json", {})
    names = ollama_files(folder)
    assert "manifest.json" not in names
    assert "verify.json" not in names
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} < set(names)


# ------------------------------------------------------------------------------------------------ Modelfile


def test_modelfile_holds_eight_frames_and_no_renderer(results):
    text = (results / "ollama/Modelfile").read_text()
    parsed = prepare_ollama.parse_modelfile(text, Path("Modelfile"))
    assert parsed["from"] == "../merged"
    assert not {"renderer", "parser"} & set(parsed)  # they write a space after the pictures
    assert parsed["parameters"]["num_ctx"] == 16384
    assert parsed["parameters"]["temperature"] == 0
    assert parsed["parameters"]["stop"] == ["<|im_end|>", "<|endoftext|>"]


def test_modelfile_template_is_chatml_with_line_feeds(results):
    text = (results / "ollama/Modelfile").read_text()
    template = prepare_ollama.parse_modelfile(text, Path("Modelfile"))["template"]
    # what Go's text/template makes of it, for the two actions that it uses
    body, end = template.split("{{- range .Messages }}")[1].split("{{ end }}")
    turns = [("system", "Be brief."), ("user", "Hi")]
    rendered = "".join(body.replace("{{ .Role }}", r).replace("{{ .Content }}", c) for r, c in turns) + end
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("pictures", "cutoff", "limit", "context"),
    [(8, 768, 32768, 16384), (1, 768, 32768, 8192), (16, 2048, 262144, 32768), (8, 768, 4096, 4096)],
)
def test_context_is_a_power_of_two_within_the_model(pictures, cutoff, limit, context):
    assert prepare_ollama.context_length(pictures, cutoff, 128, limit) == context


def test_tutorial_decoding_has_its_temperature(results):
    assert prepare(results, decoding="tutorial") == 0
    assert "PARAMETER temperature 0.2\n" in (results / "ollama/Modelfile").read_text()


@pytest.mark.parametrize("text", ["SYSTEM hi\nFROM .\n", "PARAMETER x 1\n", 'FROM .\nTEMPLATE """x\n'])
def test_foreign_modelfiles_are_refused(text):
    with pytest.raises(EqaError, match="write the Modelfile again"):
        prepare_ollama.parse_modelfile(text, Path("Modelfile"))


def test_prepare_refuses_a_merged_folder_with_a_missing_shard(results, capsys):
    (results / "merged/model-00002-of-00002.safetensors").unlink()
    (results / "ollama/Modelfile").unlink()
    assert prepare(results) == 2
    assert "model-00002-of-00002.safetensors" in capsys.readouterr().err
    assert not list((results / "ollama").iterdir())


# ------------------------------------------------------------------------------------------------ import


def test_switched_off_import_writes_the_record_and_reads_nothing(tmp_path):
    config = json.dumps({**SETTINGS, "deliver": {"ollama": False}})
    nothing = [word for name in ("merged", "modelfile", "gguf", "test") for word in (f"--{name}", "nowhere")]
    output = ["--output", str(tmp_path / "import.json"), "--work-dir", str(tmp_path / "work")]
    assert import_ollama.main([*nothing, "--config", config, *output]) == 0
    assert read_json(tmp_path / "import.json") == {"status": "disabled", "key": "deliver.ollama"}


def test_import_creates_asks_and_records(results, server):
    assert import_ollama.main(arguments(results)) == 0
    record = read_json(results / "ollama/import.json")
    assert record["status"] == "imported"
    assert record["route"] == "safetensors"
    assert record["digest"] == server.digest(record["model"])
    assert record["question"]["answer"] == "the sofa is red"
    assert record["question"]["prompt_tokens"] == 257
    assert len(record["question"]["frames"]) == 8
    create = next(body for _, path, body in server.requests if path == "/api/create")
    assert not {"renderer", "parser"} & set(create)
    assert create["template"] == prepare_ollama.CHATML
    assert create["parameters"]["num_ctx"] == 16384
    assert "quantize" not in create
    chat = next(body for _, path, body in server.requests if path == "/api/chat")
    assert len(chat["messages"][0]["images"]) == 8
    assert chat["messages"][0]["content"] == "What color is the sofa?"
    assert set(server.models) == {record["model"], "openeqa-test:latest"}
    # nothing of the machine or the hour
    assert str(results) not in (results / "ollama/import.json").read_text()


def test_second_import_uploads_nothing_and_gives_the_same_record(results, server):
    assert import_ollama.main(arguments(results)) == 0
    first, uploads = (results / "ollama/import.json").read_bytes(), len(server.uploads)
    assert import_ollama.main(arguments(results)) == 0
    assert (results / "ollama/import.json").read_bytes() == first
    assert len(server.uploads) == uploads


def test_known_blobs_are_not_sent_again(results, server):
    assert import_ollama.main(arguments(results)) == 0
    uploads = len(server.uploads)
    assert import_ollama.main(arguments(results, ollama_quantize="q4_K_M")) == 0
    assert len(server.uploads) == uploads
    creates = [body for _, path, body in server.requests if path == "/api/create"]
    assert creates[1]["quantize"] == "q4_K_M"
    assert creates[0]["model"] != creates[1]["model"]


def test_a_foreign_model_of_our_name_stays(results, server):
    server.models["openeqa-test:latest"] = {"model": "openeqa-test", "files": {}, "system": "the user's own"}
    before = server.digest("openeqa-test:latest")
    assert import_ollama.main(arguments(results)) == 0
    assert server.digest("openeqa-test:latest") == before
    record = read_json(results / "ollama/import.json")
    assert record["name"] == record["model"] != "openeqa-test"


def test_our_name_moves_on_with_the_next_import(results, server):
    assert import_ollama.main(arguments(results)) == 0
    assert import_ollama.main(arguments(results, ollama_quantize="q8_0")) == 0
    record = read_json(results / "ollama/import.json")
    assert record["name"] == "openeqa-test"
    assert server.digest("openeqa-test:latest") == server.digest(record["model"])


def test_our_name_moves_on_though_the_user_removed_the_tag_that_it_came_from(results, server):
    assert import_ollama.main(arguments(results)) == 0
    del server.models[read_json(results / "ollama/import.json")["model"]]
    assert import_ollama.main(arguments(results, ollama_quantize="q8_0")) == 0
    record = read_json(results / "ollama/import.json")
    assert record["name"] == "openeqa-test"
    assert server.digest("openeqa-test:latest") == server.digest(record["model"])


def test_a_name_that_is_not_ours_comes_with_the_way_to_free_it(results, server, capsys):
    server.models["openeqa-test:latest"] = {"model": "openeqa-test", "files": {}, "system": "the user's own"}
    assert import_ollama.main(arguments(results)) == 0
    assert "`ollama rm openeqa-test` frees the name" in capsys.readouterr().err


def test_a_damaged_memory_of_imports_costs_no_import(results, server):
    (results.parent / "work").mkdir()
    (results.parent / "work/imported.json").write_text("[]")
    assert import_ollama.main(arguments(results)) == 0
    record = read_json(results / "ollama/import.json")
    assert read_json(results.parent / "work/imported.json") == {"digests": [record["digest"]]}


@pytest.mark.parametrize("listed", [True, False], ids=["by the manifest", "by the index"])
def test_import_names_a_missing_shard_before_the_server_is_asked(results, server, capsys, listed):
    (results / "merged/model-00002-of-00002.safetensors").unlink()
    if not listed:
        (results / "merged/manifest.json").unlink()
        write_manifest(results / "merged")
    assert import_ollama.main(arguments(results)) == 2
    assert "model-00002-of-00002.safetensors" in capsys.readouterr().err.strip().splitlines()[-1]
    assert server.requests == []


@pytest.mark.parametrize(
    "switch", [{"answer": ""}, {"break_create_after": "converting model"}], ids=["answer", "create"]
)
def test_a_password_in_the_servers_address_is_not_told(results, server, capsys, monkeypatch, switch):
    for name, value in switch.items():
        setattr(server, name, value)
    monkeypatch.setenv("OLLAMA_HOST", server.url.replace("http://", "http://bob:hunter2@"))
    assert import_ollama.main(arguments(results)) == 2
    said = capsys.readouterr().err
    assert "127.0.0.1" in said
    assert "hunter2" not in said


def test_a_failure_after_the_answer_leaves_the_name_with_what_it_meant(results, server, capsys):
    """The folder that remembers imports cannot be written: the last thing that can fail."""
    assert import_ollama.main(arguments(results)) == 0
    first, models = server.digest("openeqa-test:latest"), set(server.models)
    shutil.rmtree(results.parent / "work")
    (results.parent / "work").write_text("a file where a folder should be")
    assert import_ollama.main(arguments(results, ollama_quantize="q8_0")) == 2
    assert "work" in capsys.readouterr().err.strip().splitlines()[-1]
    assert server.digest("openeqa-test:latest") == first
    assert set(server.models) == models


def test_a_name_that_another_folder_imported_stays_there(results, server):
    """Two checkouts of one recipe's name on one server: its tag looks like ours, but nothing here remembers it."""
    server.models["openeqa-test:0123456789ab"] = server.models["openeqa-test:latest"] = {
        "files": {},
        "system": "theirs",
    }
    before = server.digest("openeqa-test:latest")
    assert import_ollama.main(arguments(results)) == 0
    assert server.digest("openeqa-test:latest") == before
    record = read_json(results / "ollama/import.json")
    assert record["name"] == record["model"] != "openeqa-test"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("ollama/Modelfile", b"FROM \xff", "no UTF-8"),
        ("ollama/Modelfile", None, "snakemake"),
        ("gguf/manifest.json", b"{}", "lists no files"),
        ("gguf/manifest.json", b"[]", "lists no files"),
        ("sft/test.json", b'{"a": 1}', "build_sft"),
        ("sft/test.json", b"[{}]", "build_sft"),
    ],
)
def test_a_damaged_input_is_one_line_that_names_it(results, server, capsys, name, content, said):
    server.version = "0.34.2"
    (results / name).unlink()
    if content is not None:
        (results / name).write_bytes(content)
    assert import_ollama.main(arguments(results)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert name in error
    assert said in error
    assert server.models == {}


@pytest.mark.parametrize("version", ["0.12.6", "0.12.7", "0.17.0", "v0.9.9-rc1"])
def test_an_old_server_is_refused_before_any_upload(results, server, capsys, version):
    server.version = version
    assert import_ollama.main(arguments(results)) == 2
    said = capsys.readouterr().err
    assert "0.17.1 or newer is wanted" in said
    assert server.uploads == []
    assert server.models == {}


@pytest.mark.parametrize(
    ("switch", "value", "said"),
    [
        ("fail_create_after", "converting model", "no space left on device"),
        ("break_create_after", "converting model", "creating openeqa-test"),
        ("fail_create_http", 400, "no files provided"),
        ("fail_chat", "model runner has unexpectedly stopped", "unexpectedly stopped"),
        ("answer", "", "answers with nothing"),
    ],
)
def test_no_model_is_left_behind_after_a_failure(results, server, capsys, switch, value, said):
    server.models["somebody-elses:latest"] = {"files": {}}
    setattr(server, switch, value)
    assert import_ollama.main(arguments(results)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert set(server.models) == {"somebody-elses:latest"}
    assert not (results / "ollama/import.json").exists()


def test_a_failed_question_does_not_remove_a_model_that_was_there(results, server):
    assert import_ollama.main(arguments(results)) == 0
    names = set(server.models)
    server.fail_chat = "out of memory"
    assert import_ollama.main(arguments(results)) == 2
    assert set(server.models) == names


def test_an_unmended_folder_stops_before_the_server_is_asked(results, server, capsys):
    (results / "merged/preprocessor_config.json").unlink()
    write_manifest(results / "merged")
    assert import_ollama.main(arguments(results)) == 2
    assert "preprocessor_config.json" in capsys.readouterr().err
    assert server.requests == []


def test_the_stand_in_refuses_what_ollamas_converter_refuses(results, server, monkeypatch, capsys):
    """Without our own check first, the server's error line is what the user reads."""
    monkeypatch.setattr(import_ollama, "ollama_view", lambda folder: {"context_length": 1})
    (results / "merged/preprocessor_config.json").unlink()
    write_manifest(results / "merged")
    assert import_ollama.main(arguments(results)) == 2
    assert "creating openeqa-test" in capsys.readouterr().err
    assert server.models == {}


def write_gguf(results: Path, *names: str, content: bytes = b"") -> None:
    """results/gguf with files of these names, of no content to speak of: the stand-in runs no model."""
    folder = results / "gguf"
    for name in names:
        (folder / name).write_bytes(b"GGUF" + name.encode() + content)
    (folder / "manifest.json").unlink()
    write_manifest(folder)


def posts(server, path: str) -> list[dict]:
    return [body for _, where, body in server.requests if where == path]


def created(server, record: dict) -> dict:
    return server.models[record["model"]]


def test_gguf_is_the_second_way_where_the_converter_refuses(results, server):
    write_gguf(results, "model-f16.gguf", "mmproj-f16.gguf")
    server.refuse_safetensors = True
    assert import_ollama.main(arguments(results)) == 0
    record = read_json(results / "ollama/import.json")
    assert record["route"] == "gguf"
    assert set(created(server, record)["files"]) == {"model-f16.gguf", "mmproj-f16.gguf"}


def test_the_record_of_a_second_import_names_the_way_that_the_first_one_took(results, server):
    write_gguf(results, "model-f16.gguf", "mmproj-f16.gguf")
    server.refuse_safetensors = True
    assert import_ollama.main(arguments(results)) == 0
    first, creates = (results / "ollama/import.json").read_bytes(), len(posts(server, "/api/create"))
    assert import_ollama.main(arguments(results)) == 0
    assert read_json(results / "ollama/import.json")["route"] == "gguf"
    assert (results / "ollama/import.json").read_bytes() == first
    assert len(posts(server, "/api/create")) == creates


@pytest.mark.parametrize("name", ["model-f16.gguf", "mmproj-f16.gguf"])
def test_gguf_files_that_were_exported_again_are_imported_again(results, server, name):
    server.version = "0.34.2"
    write_gguf(results, "model-f16.gguf", "mmproj-f16.gguf")
    assert import_ollama.main(arguments(results)) == 0
    before = read_json(results / "ollama/import.json")["model"]
    write_gguf(results, name, content=b" of another converter")
    assert import_ollama.main(arguments(results)) == 0
    record = read_json(results / "ollama/import.json")
    assert record["model"] != before
    sent = server.blobs[created(server, record)["files"][name]]
    assert sent == (results / "gguf" / name).read_bytes()
    assert server.digest("openeqa-test:latest") == server.digest(record["model"])


def test_a_gguf_file_that_is_not_the_manifests_is_not_sent(results, server, capsys):
    server.version = "0.34.2"
    write_gguf(results, "model-f16.gguf", "mmproj-f16.gguf")
    (results / "gguf/model-f16.gguf").write_bytes(b"GGUFmodel-f16.ggUf")
    assert import_ollama.main(arguments(results)) == 2
    assert "model-f16.gguf: differs from" in capsys.readouterr().err
    assert server.uploads == []


def test_a_second_way_that_cannot_be_gone_hinders_no_first_one(results, server):
    write_gguf(results, "model-f16.gguf", "mmproj-f16.gguf")
    assert import_ollama.main(arguments(results, ollama_quantize="q4_K_M")) == 0
    assert read_json(results / "ollama/import.json")["route"] == "safetensors"


def test_a_large_upload_tells_how_far_it_is(results, server, monkeypatch):
    server.version = "0.34.2"
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.0)
    monkeypatch.setattr(progress, "BETWEEN_LINES_S", 0.0)
    write_gguf(results, "model-f16.gguf", "mmproj-f16.gguf", content=b"x" * 3 * 2**20)
    told = []
    monkeypatch.setattr(progress.log, "info", lambda text, *values: told.append(text % values))
    assert import_ollama.main(arguments(results)) == 0
    lines = [line for line in told if line.startswith("model-f16.gguf: ")]
    assert [line.split()[1] for line in lines[:3]] == ["1.0", "2.1", "3.1"]


def test_a_file_that_changes_while_it_is_sent_is_refused(tmp_path, server):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"new bytes")
    with pytest.raises(EqaError, match=r"model\.gguf: changed while it was sent"):
        import_ollama.Server(server.url).push(path, f"sha256:{'0' * 64}")
    assert server.blobs == {}


def test_gguf_is_the_only_way_where_there_is_no_converter(results, server):
    write_gguf(results, "model-f16.gguf", "mmproj-f16.gguf")
    server.version = "0.34.2"
    assert import_ollama.main(arguments(results)) == 0
    record = read_json(results / "ollama/import.json")
    assert record["route"] == "gguf"
    assert set(created(server, record)["files"]) == {"model-f16.gguf", "mmproj-f16.gguf"}
    assert len(server.uploads) == 2


def test_quantization_of_gguf_is_the_choice_of_a_file(results, server):
    write_gguf(results, "model-f16.gguf", "model-q8_0.gguf", "mmproj-f16.gguf")
    server.version = "0.34.2"
    assert import_ollama.main(arguments(results, ollama_quantize="q8_0")) == 0
    record = read_json(results / "ollama/import.json")
    assert set(created(server, record)["files"]) == {"model-q8_0.gguf", "mmproj-f16.gguf"}
    assert "quantize" not in created(server, record)


def test_a_quantization_that_was_not_made_is_named_with_those_that_were(results, server, capsys):
    write_gguf(results, "model-f16.gguf", "model-q8_0.gguf", "mmproj-f16.gguf")
    server.version = "0.34.2"
    assert import_ollama.main(arguments(results, ollama_quantize="q4_K_S")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "model-q4_K_S.gguf: not made here" in error
    assert error.endswith("serve.ollama_quantize can be q8_0, or empty for f16")
    assert server.uploads == []
    assert server.models == {}


def test_no_gguf_for_a_server_without_a_converter_is_said_before_any_upload(results, server, capsys):
    server.version = "0.34.2"
    assert import_ollama.main(arguments(results)) == 2
    assert "set deliver.gguf=true" in capsys.readouterr().err
    assert server.uploads == []


def test_a_model_that_ollamas_own_engine_cannot_run_is_refused_before_any_upload(results, server, capsys):
    server.version = "0.24.0"
    assert import_ollama.main(arguments(results)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "vision_start_token_id=None" in error
    assert "use Ollama 0.30.0 or newer" in error
    assert server.uploads == []


ENLARGED = "enlarges each picture to 1024 tokens or more, the model was trained and evaluated with 24"


@pytest.mark.parametrize(("version", "told"), [("0.24.0", False), ("0.30.0", True), ("0.33.0", True)])
def test_pictures_that_ollama_enlarges_are_told(results, server, capsys, monkeypatch, version, told):
    monkeypatch.setattr(import_ollama, "check_engine", lambda folder: None)
    server.version = version
    assert import_ollama.main(arguments(results)) == 0
    assert (ENLARGED in capsys.readouterr().err) == told


def test_an_empty_answer_about_enlarged_pictures_says_so(results, server, capsys):
    server.answer = ""
    assert import_ollama.main(arguments(results)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "answers with nothing" in error
    assert ENLARGED in error


def test_pictures_of_1024_tokens_are_left_alone_by_every_version(tmp_path):
    (path,) = serving_data.write_pictures(tmp_path, 1, (1024, 1024))
    assert import_ollama.enlarged_pictures((0, 34, 2), "0.34.2", {"000.jpg": path.read_bytes()}) == ""


def test_gguf_is_no_way_on_a_server_before_0_30(results, server, capsys, monkeypatch):
    write_gguf(results, "model-f16.gguf", "mmproj-f16.gguf")
    monkeypatch.setattr(import_ollama, "check_engine", lambda folder: None)
    server.refuse_safetensors, server.version = True, "0.20.0"
    assert import_ollama.main(arguments(results)) == 2
    assert "unsupported architecture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "gguf", "routes"),
    [
        ("0.17.1", True, ["safetensors"]),
        ("0.29.9", True, ["safetensors"]),
        ("0.30.0", True, ["safetensors", "gguf"]),
        ("0.34.0", False, ["safetensors"]),
        ("0.34.1", True, ["gguf"]),
        ("1.0.0", True, ["gguf"]),
        ("0.0.0", True, ["gguf", "safetensors"]),
        ("0.0.0", False, ["safetensors"]),
    ],
)
def test_ways_into_each_version(version, gguf, routes):
    assert import_ollama.routes_of(import_ollama.parse_version(version), gguf) == routes


def test_a_server_that_is_down_is_one_line(results, monkeypatch, capsys):
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    assert import_ollama.main(arguments(results)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert "http://127.0.0.1:9" in lines[0]
    assert "ollama serve" in lines[0]


@pytest.mark.parametrize("host", ["http://[::1", "127.0.0.1:99999", "::::"])
def test_an_address_that_is_none_is_one_line(results, host):
    """In a process of its own: the client reads OLLAMA_HOST when it is imported."""
    command = [sys.executable, "-m", "scripts.import_ollama", *arguments(results)]
    environment = {**os.environ, "OLLAMA_HOST": host}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no address" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_another_server_on_the_port_is_told(results, monkeypatch, capsys, tmp_path):
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    other = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    Thread(target=other.serve_forever, daemon=True).start()
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{other.server_port}")
    try:
        assert import_ollama.main(arguments(results)) == 2
    finally:
        other.shutdown()
        other.server_close()
    assert "is an Ollama server running there?" in capsys.readouterr().err


def test_a_stopped_import_removes_its_model(results, server):
    """SIGTERM, as Snakemake and Slurm send it, while the question is being answered."""
    server.answer = "slow " * 400
    command = [sys.executable, "-c", STOPPABLE, *arguments(results)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 30
    while not server.models and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.models
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) != 0
    assert server.models == {}
    assert not (results / "ollama/import.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("late_s", [30.0, 1.0], ids=["never ends it", "ends it afterwards"])
def test_an_import_stopped_during_create_leaves_no_model(results, server, number, late_s):
    """Ollama may write the model's manifest after its client has gone; what comes so late goes again too."""
    server.models["somebody-elses:latest"] = {"files": {}}
    server.pause_create_after, server.pause_s = "writing manifest", late_s
    command = [sys.executable, "-m", "scripts.import_ollama", *arguments(results)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert server.paused.wait(30)
    process.send_signal(number)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + number, error
    assert ("removed openeqa-test:" in error) == (late_s == 1.0)
    assert set(server.models) == {"somebody-elses:latest"}
    assert not (results / "ollama/import.json").exists()


STOPPABLE = """
import sys, time
from scripts import import_ollama
from scripts.lib import chat_client
def slow(self, messages, decoding):
    time.sleep(60)
chat_client.ChatClient.ask = slow
sys.exit(import_ollama.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("text", "version"),
    [("0.12.7", (0, 12, 7)), ("0.33.0-rc2", (0, 33, 0)), ("v1.2.3", (1, 2, 3)), ("0.0.0", (10**6, 0, 0))],
)
def test_version_numbers(text, version):
    assert import_ollama.parse_version(text) == version


def test_no_version_number_is_refused():
    with pytest.raises(EqaError, match="a number such as"):
        import_ollama.parse_version("unknown")
