"""scripts.lib.download against a local server that breaks."""

from __future__ import annotations

import hashlib
import os

import pytest

from scripts.lib import download
from scripts.lib.download import fetch
from scripts.lib.errors import EqaError
from tests.lib.servers import local_server

DATA = os.urandom(50_000)
SHA = hashlib.sha256(DATA).hexdigest()
MD5 = hashlib.md5(DATA).hexdigest()


@pytest.fixture
def server():
    with local_server() as behaviour:
        behaviour.files["/a.tgz"] = DATA
        yield behaviour


def test_a_dropped_connection_goes_on_where_it_stopped(server, tmp_path):
    server.drops = 3
    server.drop_after = 10_000
    file = fetch(server.url + "/a.tgz", tmp_path / "a.tgz", sha256=SHA, pause_s=0)
    assert file.read_bytes() == DATA
    assert server.sent_ranges() == ["bytes=10000-", "bytes=20000-", "bytes=30000-"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tgz"]


def test_a_killed_download_goes_on_in_the_next_run(server, tmp_path):
    server.drops = 1
    server.drop_after = 12_345
    with pytest.raises(EqaError, match=r"12345 bytes are kept in .*a\.tgz\.part: run again"):
        fetch(server.url + "/a.tgz", tmp_path / "a.tgz", sha256=SHA, tries=1)
    fetch(server.url + "/a.tgz", tmp_path / "a.tgz", sha256=SHA)
    assert (tmp_path / "a.tgz").read_bytes() == DATA
    assert server.sent_ranges() == ["bytes=12345-"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path):
    server.drops = 1
    with pytest.raises(EqaError):
        fetch(server.url + "/a.tgz", tmp_path / "a.tgz", tries=1)
    new = b"new" * 5000
    server.files["/a.tgz"] = new
    assert fetch(server.url + "/a.tgz", tmp_path / "a.tgz").read_bytes() == new


def test_without_etags_a_stale_beginning_is_found_by_the_hash(server, tmp_path):
    server.etags = False
    (tmp_path / "a.tgz.part").write_bytes(b"x" * 20_000)
    assert fetch(server.url + "/a.tgz", tmp_path / "a.tgz", sha256=SHA, size=len(DATA)).read_bytes() == DATA
    assert server.sent_ranges() == ["bytes=20000-"]


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.ranges = False
    server.drops = 1
    assert fetch(server.url + "/a.tgz", tmp_path / "a.tgz", sha256=SHA, pause_s=0).read_bytes() == DATA


def test_a_complete_part_is_not_fetched_again(server, tmp_path):
    (tmp_path / "a.tgz.part").write_bytes(DATA)
    assert fetch(server.url + "/a.tgz", tmp_path / "a.tgz", sha256=SHA, size=len(DATA)).read_bytes() == DATA
    assert server.requests == []


def test_a_part_longer_than_the_file_is_dropped(server, tmp_path):
    (tmp_path / "a.tgz.part").write_bytes(DATA + b"more")
    assert fetch(server.url + "/a.tgz", tmp_path / "a.tgz", sha256=SHA, size=len(DATA), pause_s=0).read_bytes() == DATA


def test_a_wrong_hash_says_both_and_keeps_what_came(server, tmp_path):
    with pytest.raises(EqaError, match=f"expected md5 {'0' * 32}, found {MD5}; kept as .*a.tgz.wrong"):
        fetch(server.url + "/a.tgz", tmp_path / "a.tgz", md5="0" * 32)
    assert (tmp_path / "a.tgz.wrong").read_bytes() == DATA
    assert not (tmp_path / "a.tgz").exists()


def test_a_users_own_wrong_file_is_left_alone(server, tmp_path):
    (tmp_path / "a.tgz").write_bytes(b"mine")
    with pytest.raises(EqaError, match=f"expected sha256 {SHA}, found .*; it is left as it is"):
        fetch(server.url + "/a.tgz", tmp_path / "a.tgz", sha256=SHA)
    assert (tmp_path / "a.tgz").read_bytes() == b"mine"
    assert server.requests == []


def test_a_users_own_right_file_is_not_fetched(server, tmp_path):
    (tmp_path / "a.tgz").write_bytes(DATA)
    fetch(server.url + "/a.tgz", tmp_path / "a.tgz", sha256=SHA)
    assert server.requests == []


def test_another_size_than_pinned_is_refused_before_the_first_byte(server, tmp_path):
    with pytest.raises(EqaError, match="offers 50000 bytes, 49999 are pinned"):
        fetch(server.url + "/a.tgz", tmp_path / "a.tgz", sha256=SHA, size=49_999)
    assert not (tmp_path / "a.tgz.part").exists()


def test_a_full_disk_is_said_before_the_first_byte(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 70_000_000 - 10_000_000})())
    with pytest.raises(EqaError, match=r"a\.tgz needs 0\.1 MB, only 60\.0 MB are free; free space"):
        fetch(server.url + "/a.tgz", tmp_path / "a.tgz", sha256=SHA)
    assert not (tmp_path / "a.tgz.part").exists()


@pytest.mark.parametrize(("code", "way"), [(404, "correct the address"), (403, "give a token"), (410, "correct")])
def test_an_error_of_the_server_is_told_at_once(server, tmp_path, code, way):
    server.status["/a.tgz"] = code
    with pytest.raises(EqaError, match=f"the server answers {code} .*{way}"):
        fetch(server.url + "/a.tgz", tmp_path / "a.tgz", sha256=SHA)
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.status["/a.tgz"] = 503
    with pytest.raises(EqaError, match="the server answers 503, 3 times"):
        fetch(server.url + "/a.tgz", tmp_path / "a.tgz", sha256=SHA, tries=3, pause_s=0)
    assert len(server.requests) == 3


def test_no_server_is_one_line(tmp_path):
    with pytest.raises(EqaError, match=r"http://127\.0\.0\.1:9/a: ConnectError.*2 times") as caught:
        fetch("http://127.0.0.1:9/a?token=SECRET", tmp_path / "a", tries=2, pause_s=0)
    assert "SECRET" not in str(caught.value)


def test_secrets_of_an_address_are_not_shown(server, tmp_path, caplog):
    caplog.set_level("INFO")
    address = server.url.replace("http://", "http://me:SECRET@") + "/none?rlkey=SECRET"
    with pytest.raises(EqaError) as caught:
        fetch(address, tmp_path / "a", sha256=SHA)
    assert "SECRET" not in str(caught.value) + caplog.text


def test_redirects_are_followed_and_keep_the_range(server, tmp_path):
    server.redirects["/old"] = "/a.tgz"
    server.drops = 1
    assert fetch(server.url + "/old", tmp_path / "a.tgz", sha256=SHA, pause_s=0).read_bytes() == DATA
    assert "bytes=1000-" in server.sent_ranges()


def test_file_addresses_are_copied(tmp_path):
    source = tmp_path / "with space.bin"
    source.write_bytes(DATA)
    assert fetch(source.as_uri(), tmp_path / "b" / "copy", sha256=SHA).read_bytes() == DATA
    assert source.exists()
    with pytest.raises(EqaError, match="no such file"):
        fetch((tmp_path / "none").as_uri(), tmp_path / "c")


@pytest.mark.parametrize("address", ["ftp://host/a", "data:text/plain,x", "a/b.bin", "", "http://[x"])
def test_other_kinds_of_address_are_refused(tmp_path, address):
    with pytest.raises(EqaError, match="file:, http: or https:"):
        fetch(address, tmp_path / "a")
