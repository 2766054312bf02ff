"""Keys: shown once, kept hashed, revoked while a server runs."""

from __future__ import annotations

import multiprocessing
import stat

import pytest
from command_line import talaria

from serve.tiny_server import BODIES, CHAT
from talaria.errors import UserError
from talaria.serve.keys import Keyring, hash_key, make_key, read_keys, revoke_key


def test_keys_are_shown_once_and_kept_hashed(tmp_path):
    path = tmp_path / "private" / "keys.json"
    first, second = make_key(path, "first"), make_key(path, "second")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first not in path.read_text() and second not in path.read_text()
    ring = Keyring(path)
    assert (ring.name_of(first), ring.name_of(second)) == ("first", "second")
    for wrong in (
        "",
        first + " ",
        first.upper(),
        first[:-1],
        hash_key(first),
        "\ud800".encode("utf-8", "replace").decode(),
    ):
        assert ring.name_of(wrong) is None
    assert sorted(p.name for p in path.parent.iterdir()) == [".keys.json.lock", "keys.json"]


def test_a_wrong_key_file_is_named_with_the_next_step(tmp_path):
    path = tmp_path / "keys.json"
    with pytest.raises(UserError, match=r"no such key file; .*talaria keys add"):
        Keyring(path)
    key = make_key(path, "first")
    assert key.startswith("tal-")
    with pytest.raises(UserError, match="'first' exists"):
        make_key(path, "first")
    with pytest.raises(UserError, match="write a short name"):
        make_key(path, "\x1b[2J")
    with pytest.raises(UserError, match="no key named 'second'; its keys are: 'first'"):
        revoke_key(path, "second")
    revoke_key(path, "first")
    with pytest.raises(UserError, match="holds no key"):
        Keyring(path)
    for broken in ('{"keys": [{"name": "x", "sha256": "zz", "created_at": ""}]}', "[]", "{", '{"keys": [1]}', "\xff"):
        path.write_bytes(broken.encode("latin-1"))
        with pytest.raises(UserError, match="not a key file"):
            read_keys(path)


def test_a_running_server_follows_the_key_file(served, keys):
    server = served()
    late = make_key(keys, "late")
    assert server.call("POST", CHAT, late, json=BODIES[CHAT]).status_code == 200
    revoke_key(keys, "late")
    assert server.call("POST", CHAT, late, json=BODIES[CHAT]).status_code == 401
    assert server.post(CHAT).status_code == 200
    content = keys.read_bytes()
    keys.write_text("{broken")
    assert server.post(CHAT).status_code == 401, "who cannot be told from a revoked client is refused"
    keys.unlink()
    assert server.post(CHAT).status_code == 401
    keys.write_bytes(content)
    assert server.post(CHAT).status_code == 200


def test_keys_made_at_the_same_time_are_all_kept(tmp_path):
    path = tmp_path / "keys.json"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        made = pool.starmap(make_key, [(path, f"key-{i}") for i in range(24)])
    ring = Keyring(path)
    assert [ring.name_of(key) for key in made] == [f"key-{i}" for i in range(24)]


def test_keys_by_command(tmp_path, capsys):
    path = tmp_path / "keys.json"
    assert talaria("keys", "add", "alice", "--keys", path) == 0
    key = capsys.readouterr().out.strip()
    assert Keyring(path).name_of(key) == "alice"
    assert talaria("keys", "list", "--keys", path) == 0
    listed = capsys.readouterr().out
    assert "alice" in listed and key not in listed and hash_key(key) not in listed
    assert talaria("keys", "revoke", "alice", "--keys", path) == 0
    assert read_keys(path) == []
    assert talaria("keys", "revoke", "alice", "--keys", path) == 1
    assert "no key named 'alice'" in capsys.readouterr().err
