"""A second person's part in a promotion: who may approve what, when it is stale, what servers make of a move without one."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from memory_store import MemoryStore
from schedule_strategies import MODEL, schedule
from typer.testing import CliRunner

from registry import second_person
from registry.__main__ import app
from registry.audit_trail import approval_acts
from registry.bundle import Bundle
from registry.catalog import Catalog
from registry.errors import Conflict, InvalidInput, NeedsApproval, Untrusted
from registry.gc import GarbageCollector
from registry.records import Target
from registry.signing import SigningKey, TrustedKeys
from registry.stores.folder import FolderStore
from registry.verify import Verification

ONE, OTHER, THIRD = schedule(5), schedule(3, 6), schedule(2)
PRIVATE = {name: Ed25519PrivateKey.generate() for name in ("ada", "ben", "eve")}
KEYS = {name: SigningKey(private) for name, private in PRIVATE.items()}
TRUSTED = TrustedKeys({KEYS[name].id: PRIVATE[name].public_key() for name in ("ada", "ben")})  # eve is a stranger


class Clock:
    def __init__(self) -> None:
        self.time = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.time += timedelta(seconds=1)
        return self.time


class Office:
    """People at one registry, in which `balanced` means the first schedule and takes a second person."""

    def __init__(self, signed: bool = False) -> None:
        self.store, self.clock = MemoryStore(), Clock()
        for one in (ONE, OTHER, THIRD):
            self.of("ada").publish(one)
        self.of("ada").promote("balanced", ONE.digest)
        known = {"balanced": (ONE.digest,)}
        self.of("ada").approvals.set_policy(["balanced"], known, 24, "care", KEYS["ada"] if signed else None)

    def of(self, name: str, **options: Any) -> Catalog:
        return Catalog(self.store, MODEL.name, author=name, clock=self.clock, **options)

    def request(self, name: str, key: SigningKey | None = None, digest: str = OTHER.digest) -> str:
        return second_person.request(self.of(name), "balanced", digest, "better", key=key).id

    def approve(self, name: str, request: str, key: SigningKey | None = None) -> Any:
        return second_person.approve(self.of(name), request, "seen", key)

    @property
    def meant(self) -> str:
        return self.of("any").alias("balanced").digest


@pytest.fixture
def office() -> Office:
    return Office()


def test_a_guarded_tier_is_moved_by_two_persons_and_by_none_alone(office: Office) -> None:
    with pytest.raises(NeedsApproval, match="a second person"):
        office.of("ada").promote("balanced", OTHER.digest)
    request = office.request("ada")
    with pytest.raises(Conflict, match="ada speaks for it already: another one must"):
        office.approve("ada", request)
    assert office.meant == ONE.digest
    alias = office.approve("ben", request)
    assert (alias.digest, alias.history[-1].author) == (OTHER.digest, "ben")
    assert alias.history[-1].reason == f"request {request} by ada: better"
    office.of("ada").promote("fast", OTHER.digest)  # no other tier is guarded


def test_a_key_cannot_approve_what_it_asked_for_under_another_name() -> None:
    office = Office(signed=True)
    request = office.request("ada", KEYS["ada"])
    with pytest.raises(Conflict, match=r"the key .* speaks for it already"):
        office.approve("mallory", request, KEYS["ada"])
    with pytest.raises(InvalidInput, match="voices are signatures here"):
        office.approve("ben", request)
    assert office.approve("ada", request, KEYS["ben"]).digest == OTHER.digest


def test_a_request_without_a_signature_takes_two(office: Office) -> None:
    office = Office(signed=True)
    request = office.request("olga")
    assert office.approve("ada", request, KEYS["ada"]) is None
    assert office.approve("ben", request, KEYS["ben"]).digest == OTHER.digest


def test_a_request_is_stale_once_the_tier_has_moved_or_after_its_time(office: Office) -> None:
    request, late = office.request("ada"), office.request("ada", digest=THIRD.digest)
    office.approve("ben", request)
    with pytest.raises(InvalidInput, match="is stale, the tier was moved since"):
        office.approve("ben", late)
    again = office.request("ada", digest=THIRD.digest)
    office.clock.time += timedelta(hours=25)
    with pytest.raises(InvalidInput, match="is stale, it was good until"):
        office.approve("ben", again)
    assert second_person.open_requests(office.of("ada")) == []
    assert office.approve("ben", office.request("ada", digest=THIRD.digest)).digest == THIRD.digest


def test_asking_twice_makes_one_request(office: Office) -> None:
    assert office.request("ada") == office.request("ben")
    (waiting,) = second_person.open_requests(office.of("ada"))
    assert [voice.author for voice in waiting.voices] == ["ada"]


def test_a_rollback_takes_one_person(office: Office) -> None:
    office.approve("ben", office.request("ada"))
    assert office.of("ada").rollback("balanced").digest == ONE.digest


def test_an_approval_promotes_once_and_a_rollback_does_not_renew_it(office: Office) -> None:
    office.approve("ben", office.request("ada"))
    office.of("ada").rollback("balanced")
    with pytest.raises(NeedsApproval):
        office.of("ada").promote("balanced", OTHER.digest)
    assert office.meant == ONE.digest


def test_a_promotion_that_was_cut_off_after_the_second_voice_is_made_up(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = office.request("ada")
    with monkeypatch.context() as cut:
        cut.setattr(Catalog, "promote", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            office.approve("ben", request)
    assert office.meant == ONE.digest
    assert office.approve("ben", request).digest == OTHER.digest


def test_the_policy_itself_takes_a_second_person_once_it_guards_a_tier(office: Office) -> None:
    approvals = office.of("eve").approvals
    assert not approvals.set_policy([], {}, 24, "in a hurry", None).in_force
    assert office.of("eve").approvals.guards("balanced")
    with pytest.raises(Conflict, match="eve speaks for it already"):
        office.of("eve").approvals.approve_policy("", None)
    assert office.of("ben").approvals.approve_policy("", None).in_force
    assert not office.of("ada").approvals.guards("balanced")


class Server:
    """What a server that trusts ada's and ben's keys makes of aliases; it lives as long as it is."""

    def __init__(self, office: Office, **options: Any) -> None:
        self.catalog = office.of("server", trusted=TRUSTED, **options)

    def takes(self) -> bool:
        try:
            self.catalog.approvals.check(self.catalog.alias("balanced"))
        except Untrusted:
            return False
        return True


def behind_its_back(office: Office, digest: str, number: int) -> None:
    """Who can write to the bucket moves the alias as a tool of an earlier version would."""
    office.of("mallory").tier_aliases.move("promote", "balanced", lambda _: Target(digest=digest, version=number), "by hand")


def test_a_server_takes_what_two_trusted_keys_signed_and_refuses_the_rest() -> None:
    office = Office(signed=True)
    server = Server(office)
    assert server.takes(), "it was so when the policy came"
    request = office.request("ada", KEYS["ada"])
    behind_its_back(office, OTHER.digest, 2)
    assert not server.takes(), "one signature is none"
    office.of("ada").rollback("balanced")
    assert server.takes()
    request = office.request("ada", KEYS["ada"])
    office.approve("eve", request, KEYS["eve"])
    assert office.meant == OTHER.digest, "the tools cannot know whom servers trust"
    assert not server.takes(), "a stranger's signature is none"
    office.of("ada").rollback("balanced")
    request = office.request("ben", KEYS["ben"])
    office.approve("ada", request, KEYS["ada"])
    assert server.takes()
    behind_its_back(office, THIRD.digest, 3)
    assert not server.takes()
    office.of("ada").rollback("balanced")
    assert office.meant == OTHER.digest
    assert server.takes(), "one person rolls back to what two had approved"


def approved_and_rolled_back() -> tuple[Office, list[str]]:
    """An office of signatures in which two had promoted the second schedule, and the keys of that request and its voices."""
    office = Office(signed=True)
    request = office.request("ada", KEYS["ada"])
    office.approve("ben", request, KEYS["ben"])
    assert Server(office).takes()
    office.of("ada").rollback("balanced")
    return office, [key for key in office.store.list(f"{MODEL.name}/approvals/requests/") if request in key]


def copied(office: Office, keys: list[str], part: str, into: str) -> None:
    """Who can write to the bucket lays documents elsewhere, as they are."""
    assert len(keys) == 3, "a request and two voices"
    for key in keys:
        assert key.count(part) == 1
        office.store.create(key.replace(part, into), office.store.get(key).data)


def test_a_server_refuses_a_second_promotion_by_the_approval_of_the_first() -> None:
    office, _ = approved_and_rolled_back()
    behind_its_back(office, OTHER.digest, 2)
    assert not Server(office).takes()


def test_an_approval_copied_to_a_later_move_counts_for_nothing() -> None:
    office, keys = approved_and_rolled_back()
    copied(office, keys, "/000001-", "/000003-")
    with pytest.raises(NeedsApproval):
        office.of("ada").promote("balanced", OTHER.digest)
    behind_its_back(office, OTHER.digest, 2)
    assert not Server(office).takes()


def test_an_approval_copied_to_another_model_counts_for_nothing() -> None:
    office, keys = approved_and_rolled_back()
    copied(office, keys, f"{MODEL.name}/", "another/")
    another = Catalog(office.store, "another", author="mallory", clock=office.clock)
    for digest, number in ((ONE.digest, 1), (OTHER.digest, 2)):
        another.tier_aliases.move("promote", "balanced", lambda _, to=(digest, number): Target(digest=to[0], version=to[1]), "")
    trusting = Catalog(office.store, "another", author="server", trusted=TRUSTED, approved_tiers=["balanced"])
    with pytest.raises(Untrusted, match="has no second person"):
        trusting.approvals.check(trusting.alias("balanced"))


def test_two_persons_can_stand_for_a_move_afterwards() -> None:
    office = Office(signed=True)
    behind_its_back(office, OTHER.digest, 2)
    assert not Server(office).takes()
    request = office.request("ada", KEYS["ada"])
    assert not Server(office).takes(), "one voice is none"
    office.approve("ben", request, KEYS["ben"])
    assert Server(office).takes()
    assert office.of("any").alias("balanced").moves == 2, "nothing moved"


def test_open_requests_are_found_without_reading_those_that_are_over(office: Office) -> None:
    for digest in (OTHER.digest, THIRD.digest):
        office.request("ada", digest=digest)
    office.approve("ben", second_person.open_requests(office.of("ben"))[0].request.id)
    request = office.request("ada", digest=ONE.digest)
    for key in list(office.store.list(f"{MODEL.name}/approvals/requests/balanced/000001")):
        office.store._objects[key] = b"{"
    assert [one.request.id for one in second_person.open_requests(office.of("ada"))] == [request]
    assert [one.request.id for one in office.of("ada").approvals.requests()] == [request], "damaged ones are no reason to fail"


def test_a_tier_that_must_be_guarded_wants_a_policy_first() -> None:
    office = Office()
    catalog, alias = office.of("ada", approved_tiers=["other"]), office.of("ada").promote("other", ONE.digest)
    with pytest.raises(Untrusted, match="no policy says what the tier meant before: python -m registry policy --tier other"):
        catalog.approvals.check(alias)


def test_a_changed_request_has_no_voices() -> None:
    office = Office(signed=True)
    request = office.request("ada", KEYS["ada"])
    office.approve("ben", request, KEYS["ben"])
    (place,) = [key for key in office.store.list(MODEL.name) if key.endswith(f"-{request}.json")]
    office.store._objects[place] = office.store._objects[place].replace(OTHER.digest.encode(), THIRD.digest.encode())
    behind_its_back(office, THIRD.digest, 3)
    assert not Server(office).takes()


def test_a_policy_that_was_taken_away_still_holds_for_who_saw_it_or_was_told() -> None:
    office = Office(signed=True)
    saw = Server(office)
    assert saw.takes()
    for key in list(office.store.list(f"{MODEL.name}/approvals/policy/")):
        office.store.delete(key)
    behind_its_back(office, OTHER.digest, 2)
    assert not saw.takes()
    assert Server(office).takes(), "a server that starts afterwards has nothing to go by"
    assert not Server(office, approved_tiers=("balanced",)).takes()


def test_a_policy_that_no_trusted_key_signed_guards_nothing_on_a_server_with_trusted_keys() -> None:
    office = Office(signed=False)
    behind_its_back(office, OTHER.digest, 2)
    assert Server(office).takes()


def test_the_audit_tells_all_of_it_and_verify_and_gc_know_it(office: Office) -> None:
    request = office.request("ada")
    assert OTHER.digest not in {one.digest for one in GarbageCollector(office.of("ada"), 0).find()}
    assert THIRD.digest in {one.digest for one in GarbageCollector(office.of("ada"), 0).find()}
    office.approve("ben", request)
    said = [(act.what.split(":")[0], act.by.author) for act in approval_acts(office.of("ada"))]
    assert said == [
        ("policy 1", "ada"), ("speaks for policy 1", "ada"), (f"request {request}", "ada"),
        (f"speaks for request {request}", "ada"), (f"speaks for request {request}", "ben"),
    ]  # fmt: skip
    assert Verification(office.of("ada")).findings == []


def test_a_signature_where_names_count_is_refused_and_not_lost(office: Office) -> None:
    with pytest.raises(InvalidInput, match="voices are names here"):
        office.request("ada", KEYS["ada"])
    request = office.request("ada")
    with pytest.raises(InvalidInput, match="leave the key out"):
        office.approve("ben", request, KEYS["ben"])
    assert office.approve("ben", request).digest == OTHER.digest, "who was refused has not spoken yet"
    office.of("ada").approvals.set_policy([], {}, 24, "nobody watches", None)
    with pytest.raises(InvalidInput, match="voices are names here"):
        office.of("ben").approvals.approve_policy("seen", KEYS["ben"])
    assert office.of("ben").approvals.approve_policy("seen", None).in_force


def test_a_name_where_signatures_count_for_a_policy_is_refused() -> None:
    office = Office(signed=True)
    office.of("ada").approvals.set_policy([], {}, 24, "nobody watches", KEYS["ada"])
    with pytest.raises(InvalidInput, match="voices are signatures here: python -m registry approve policy --key"):
        office.of("ben").approvals.approve_policy("seen", None)
    assert office.of("ben").approvals.approve_policy("seen", KEYS["ben"]).in_force


def test_the_command_lines(tmp_path: Path) -> None:
    catalog = Catalog(FolderStore(tmp_path / "registry"), MODEL.name)
    for one in (ONE, OTHER):
        catalog.publish(one)
    catalog.promote("balanced", ONE.digest)
    keys = {name: str(tmp_path / f"{name}.pem") for name in ("ada", "ben")}

    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, words, env={"FLEXI_REGISTRY": str(tmp_path / "registry"), "COLUMNS": "200"})
        assert done.exit_code == code, done.output
        return done.output

    for path in keys.values():
        run("keygen", path)
    assert "in force" in run("policy", "--tier", "balanced", "--key", keys["ada"])
    assert "takes a second person: request" in run("promote", "balanced", OTHER.digest, "-m", "better", "--key", keys["ada"])
    (request,) = json.loads(run("requests", "--json"))
    assert "another one must" in run("approve", request["id"], "--key", keys["ada"], code=1)
    run("approve", request["id"], "--key", keys["ben"])
    assert catalog.alias("balanced").digest == OTHER.digest
    assert "speaks for request" in run("audit")
    assert "waits for a second person" in run("policy", "--none", "--key", keys["ada"])
    assert "is in force" in run("approve", "policy", "--key", keys["ben"])
    run("promote", "balanced", ONE.digest)
    assert catalog.alias("balanced").digest == ONE.digest


def test_a_bundle_leaves_guarded_tiers_to_two_persons(office: Office) -> None:
    catalog = office.of("ada", approved_tiers=["fast"])
    catalog.approvals.set_policy(["balanced", "fast"], {}, 24, "care", None)
    source = Catalog(MemoryStore(), MODEL.name, author="ada")
    for tier, one in (("draft", OTHER), ("fast", ONE)):
        source.publish(one)
        source.promote(tier, one.digest)
    said = {item.name: item.outcome for item in Bundle.of(source).publish(catalog) if item.kind == "tier"}
    assert said["draft"].startswith("promoted")
    assert said["fast"] == "not promoted, it takes a second person: python -m registry promote fast 1"


def test_what_a_server_keeps_beside_the_models_is_no_model(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "registry")
    Catalog(store, MODEL.name).publish(ONE)
    for key in ("_events/1-evt.json", "_jobs/open/a/b.json", "_files/1.png"):
        store.create(key, b"{}")
    done = CliRunner().invoke(app, ["list"], env={"FLEXI_REGISTRY": str(tmp_path / "registry")})
    assert done.exit_code == 0, done.output
