"""API keys: what the file may hold, how a running server follows it, and the commands that change it."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import REGISTRY
from typer.testing import CliRunner

from registry.errors import InvalidInput
from server.access.__main__ import app
from server.access.key_file import KeyEntry, KeyFile, changing, read, sha256
from server.access.keys import Key, Keys


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


def write(path, **tokens: str) -> None:
    entries = tuple(KeyEntry(name=name, sha256=sha256(token), macs_per_minute=7) for name, token in tokens.items())
    path.write_text(KeyFile(keys=entries).model_dump_json())


def run(*arguments, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.output.strip()


def test_a_token_finds_its_key_and_no_other(path):
    write(path, one="1", two="2")
    keys = Keys(path)
    assert keys.find("2") == Key("two", 7, None)
    assert keys.find("3") is keys.find("") is keys.find(sha256("1")) is None


def test_the_file_is_followed_but_not_at_every_request(path):
    write(path, one="1")
    keys = Keys(path, clock := Clock())
    write(path, one="1", two="2")
    clock.now = 0.9
    assert keys.find("2") is None
    clock.now = 1.0
    assert keys.find("2")
    write(path, two="2")
    clock.now = 2.0
    assert keys.find("1") is None


@pytest.mark.parametrize("text", [None, "", "{", '{"keys": [{"name": "one"}]}', '{"key": []}', "\xff"])
def test_a_broken_file_changes_nothing_and_is_logged_once(path, text, caplog):
    write(path, one="1")
    keys, failures = Keys(path, clock := Clock()), REGISTRY.get_sample_value("flexi_api_keys_errors_total")
    path.unlink() if text is None else path.write_bytes(text.encode("latin-1"))
    for clock.now in (1.0, 2.0, 3.0):
        assert keys.find("1")
    assert REGISTRY.get_sample_value("flexi_api_keys_errors_total") == failures + 1
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    write(path, two="2")
    clock.now = 4.0
    assert keys.find("2")
    assert not keys.find("1")


ENTRY = {"name": "one", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ([{**ENTRY, "sha256": "secret"}], r"keys\.0\.sha256: "),
        ([{**ENTRY, "sha256": "A" * 64}], r"keys\.0\.sha256: "),
        ([{**ENTRY, "name": "One"}], r"keys\.0\.name: "),
        ([{**ENTRY, "name": "anonymous"}], "requests without a key"),
        ([{**ENTRY, "macs_per_minute": 0}], r"keys\.0\.macs_per_minute: .* greater than or equal to 1"),
        ([{**ENTRY, "queue_seconds": 0}], r"keys\.0\.queue_seconds: .* greater than 0"),
        ([{**ENTRY, "quota": 1}], r"keys\.0\.quota: "),
        ([ENTRY, {**ENTRY, "sha256": "1" * 64}], "the name one is there twice"),
        ([ENTRY, {**ENTRY, "name": "two"}], "the sha256 0+ is there twice"),
    ],
)
def test_a_fault_is_named_without_what_stands_there(path, keys, fault):
    path.write_text(json.dumps({"keys": keys}))
    with pytest.raises(InvalidInput, match=fault) as refused:
        Keys(path)
    assert refused.value.message.startswith(f"FLEXI_API_KEYS: {path}: ")
    assert "secret" not in refused.value.message


def test_a_missing_file_stops_the_start(path):
    with pytest.raises(InvalidInput, match=r"cannot read .*: No such file"):
        Keys(path)


def test_the_commands_make_list_and_revoke(path):
    token = run("new", "shop", "--file", path, "--macs-per-minute", "1000", "--queue-seconds", "2.5", "-m", "the shop's")
    assert Keys(path).find(token) == Key("shop", 1000, 2.5)
    other = run("new", "lab", "--file", path)
    assert token != other
    assert len(token) >= 43  # 256 bits in base 64
    assert run("list", "--file", path).splitlines() == [
        "shop  macs_per_minute=1000 queue_seconds=2.5  the shop's",
        "lab  macs_per_minute=- queue_seconds=-",
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token not in path.read_text()
    assert run("revoke", "shop", "--file", path) == ""
    assert Keys(path).find(token) is None
    assert Keys(path).find(other)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["new", "shop"], "shop has a key"),
        (["new", "Shop!"], "name: "),
        (["new", "other", "--macs-per-minute", "0"], "macs_per_minute: "),
        (["new", "other", "--queue-seconds", "nan"], "queue_seconds: "),
        (["revoke", "other"], "there is no key 'other'"),
    ],
)
def test_what_cannot_be_done_changes_nothing(path, arguments, fault):
    write(path, shop="1")
    before = path.read_bytes()
    said = run(*arguments, "--file", path, code=1)
    assert said.startswith("error: ")
    assert fault in said
    assert "\n" not in said
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", ["nowhere/keys.json", "."])
def test_an_impossible_place_is_one_line(tmp_path, place):
    said = run("new", "shop", "--file", tmp_path / place, code=1)
    assert said.startswith("error: ")
    assert "\n" not in said


def test_writers_at_the_same_time_lose_no_key(path):
    def add(i: int) -> None:
        with changing(path) as entries:
            entries.append(KeyEntry(name=f"k{i}", sha256=sha256(str(i))))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert {entry.name for entry in read(path).keys} == {f"k{i}" for i in range(40)}


def test_an_operators_key_has_the_role_and_any_other_stands_in_the_file_as_before(path):
    token, other = run("new", "olga", "--role", "operator", "--file", path), run("new", "shop", "--file", path)
    keys = Keys(path)
    assert (keys.find(token).role, keys.find(other).role) == ("operator", None)
    entries = {entry["name"]: entry for entry in json.loads(path.read_text())["keys"]}
    assert entries["olga"]["role"] == "operator"
    assert "role" not in entries["shop"], "an older server reads the file, and knows no roles"
    assert "role=operator" in run("list", "--file", path).splitlines()[0]
    assert "operator" in run("new", "bob", "--role", "boss", "--file", path, code=2)
