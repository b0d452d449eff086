"""Routes of operators behind the edge, on a real registry: who may act, what an action does, what a stale page may not do."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace

import httpx
import pytest
from experiments import DECLARATION, outcome
from memory_store import MemoryStore
from schedule_strategies import MODEL, schedule
from typing_extensions import override

from registry.audit_trail import audited_moves
from registry.catalog import Catalog
from registry.errors import StoreUnavailable
from registry.experiments.candidates import CandidateCatalog, candidate_of
from registry.experiments.catalog import ExperimentCatalog
from registry.experiments.declaration import Experiment
from registry.schedule import Cost, Fidelity, Schedule
from registry.signing import SigningKey, TrustedKeys
from registry.writer import Writer
from server.access.key_file import KeyEntry, KeyFile, sha256
from server.access.keys import Keys
from server.experiments.events import ImageFigures, PairEvent, pair_stream, stream, write
from server.experiments.outbox.outbox import today
from server.http import v1
from server.http.drain import Drain
from server.http.edge import Edge
from server.models.model_registry import ModelRegistry
from server.operator import operator
from server.operator.operator import Operator

PREFIX, NAME = "/v1/operator", DECLARATION["name"]
MEASURED = [(0.5, 4.0), (0.3, 6.0), (0.4, 9.0)]  # the last is dearer and worse than the second
SCHEDULES = [
    schedule(
        *partial,
        cost=Cost(macs=int(1000 * cost), rows=2, relative=cost),
        fidelity=Fidelity(rfid=rfid, psnr=20.0, images=64),
        provenance={"job": "search 7"},
    )
    for partial, (cost, rfid) in zip(((5,), (), (3,)), MEASURED, strict=True)
]
FIRST, SECOND, WORSE = SCHEDULES


class AwayStore(MemoryStore):
    """A store that can go away, for all or for writers, and counts reads."""

    away = readonly = False
    reads = 0

    @override
    def get(self, key):
        self.reads += 1
        if self.away:
            raise StoreUnavailable("cannot be reached", param="registry")
        return super().get(key)

    @override
    def swap(self, key, data, etag):
        if self.readonly:
            raise StoreUnavailable("may only be read", param="registry")
        return super().swap(key, data, etag)


class Console:
    """A client of the routes, and the registry behind them."""

    def __init__(self, folder, monkeypatch, trusted=None):
        self.store = AwayStore()
        self.catalog = Catalog(self.store, MODEL.name, author="ada")
        for one in SCHEDULES:
            self.catalog.publish(one, "by hand")
        self.catalog.promote("balanced", FIRST.digest, "the first")
        self.experiments = ExperimentCatalog(self.store, MODEL.name)
        entries = [
            KeyEntry(name="shop", sha256=sha256("shop")),
            *(KeyEntry(name=name, sha256=sha256(name), role="operator") for name in ("olga", "otto")),
        ]
        (folder / "keys.json").write_text(KeyFile(keys=tuple(entries)).model_dump_json())
        self.keys = Keys(folder / "keys.json")
        settings = SimpleNamespace(
            state=folder, registry="memory", watch_seconds=5.0, commit="", workers=1, public_url="https://flexi.example.com",
            approved_tiers=(),
        )  # fmt: skip
        served = SimpleNamespace(
            name=MODEL.name,
            counted_as="",
            registry=ModelRegistry(settings, MODEL.name, lambda: self.store, trusted),
            schedules=SimpleNamespace(tiers=list, refused={}),
            candidates=SimpleNamespace(refused={}),
            default_tier="balanced",
            state="loaded",
            fault="",
        )
        monkeypatch.setattr(operator, "REGISTRY_SECONDS", 0.0)
        self.app = SimpleNamespace(settings=settings, open_models=[served], served=lambda _: served)
        monkeypatch.setattr(v1.routes.state, "app", self.app, raising=False)
        self.served = served

    def ask(self, method, path="", key="olga", keys=True, headers=None, origins=(), **body):
        async def go():
            self.app.operator = Operator([self.served], self.app.settings)
            transport = httpx.ASGITransport(Edge(v1.routes, Drain(), self.keys if keys else None, origins))
            own = ({"Authorization": f"Bearer {key}"} if key else {}) | (headers or {})
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as http:
                try:
                    return await http.request(method, PREFIX + path, headers=own, json=body or None)
                finally:
                    self.app.operator.close()

        return asyncio.run(go())

    def get(self, path="", status=200, **options):
        reply = self.ask("GET", path, **options)
        assert reply.status_code == status, reply.text
        return reply.json()

    def act(self, path, status=200, **body):
        reply = self.ask("POST", path, **body)
        assert reply.status_code == status, reply.text
        return reply.json()

    def declare(self, **changes):
        arms = [{"name": name, "digest": one.digest, "weight": 1} for name, one in (("control", FIRST), ("cheaper", SECOND))]
        document = DECLARATION | {"arms": arms, "end": "2999-01-01T00:00:00Z"} | changes
        self.experiments.declare(Experiment.model_validate(document))
        self.experiments.act(NAME, "start")

    def saw(self, units):
        """So many units in each arm, one request each."""
        events = [
            outcome(i, arm, i, service_seconds=0.5 + (arm == "control")) for i in range(units) for arm in ("control", "cheaper")
        ]
        self.store.create(f"{MODEL.name}/{stream(NAME)}/{today()}/00000001.jsonl", write(events))


@pytest.fixture
def console(tmp_path, monkeypatch):
    return Console(tmp_path, monkeypatch)


ACTIONS = {
    "/tiers/balanced/promote": {"schedule": "2", "reason": "cheaper", "moves": 1},
    "/tiers/balanced/rollback": {"reason": "worse", "moves": 1},
    f"/experiments/{NAME}/ramp": {"reason": "on", "version": 1, "transitions": 2, "force": True},
    f"/experiments/{NAME}/stop": {"reason": "enough", "version": 1, "transitions": 2},
    f"/experiments/{NAME}/kill": {"reason": "harm", "version": 1, "transitions": 2},
    "/requests/0123456789ab/approve": {"reason": "seen"},
}
READS = ["", "/work", "/front", "/tiers", "/tiers/balanced/moves", "/schedules/balanced", "/experiments"]


def everything(store):
    return {key: store.get(key).data for key in store.list("")}


@pytest.mark.parametrize("path", [*READS, *ACTIONS])
def test_a_key_without_the_role_gets_nothing_and_changes_nothing(console, path):
    console.declare()
    before = everything(console.store)
    reply = console.ask("POST" if path in ACTIONS else "GET", path, key="shop", **ACTIONS.get(path, {}))
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (403, "forbidden")
    assert "shop" in error["message"]
    assert "--role operator" in error["message"]
    assert console.ask("GET", path, key="").status_code == 401
    assert everything(console.store) == before


@pytest.mark.parametrize("path", ACTIONS)
def test_without_keys_everything_is_shown_and_nobody_acts(console, path):
    console.declare()
    before = everything(console.store)
    error = console.act(path, 403, key="", keys=False, **ACTIONS[path])["error"]
    assert "python -m server.access new NAME --role operator" in error["message"]
    assert everything(console.store) == before
    for read in READS:
        console.get(read, key="", keys=False)
    said = console.get("", key="", keys=False)
    assert (said["may_act"], said["why_not"]) == (False, error["message"].removeprefix("Authorization: "))


def test_an_operator_is_told_that_they_may_act(console):
    assert (console.get()["name"], console.get()["may_act"], console.get()["why_not"]) == ("olga", True, None)


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example.com"},
        {"Origin": "null"},
        {"Origin": "http://test.evil.example.com"},
        {"Origin": "http://[test"},
        {"Origin": "http://[fd00::1]:3000"},
    ],
)
@pytest.mark.parametrize("path", ["", "/tiers/balanced/promote"])
def test_pages_of_other_sites_are_refused_though_they_bring_a_key(console, headers, path):
    before = everything(console.store)
    reply = console.ask("POST" if path else "GET", path, headers=headers, **ACTIONS.get(path, {}))
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "forbidden")
    assert everything(console.store) == before


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://test"},
        {"Origin": "http://test"},
        {"Origin": "https://flexi.example.com"},
    ],
)
def test_the_console_itself_and_scripts_are_let_in(console, headers):
    console.get(headers=headers)


@pytest.mark.parametrize("origins", [("*",), ("https://shop.example.com",)])
def test_no_setting_opens_these_routes_to_other_origins(console, origins):
    asking = {"Origin": "https://shop.example.com", "Access-Control-Request-Method": "POST"}
    reply = console.ask("OPTIONS", "/tiers/balanced/promote", headers=asking, origins=origins)
    assert reply.status_code == 400
    assert not [name for name in reply.headers if name.startswith("access-control")]
    reply = console.ask("GET", headers={"Origin": "https://shop.example.com"}, origins=origins)
    assert reply.status_code == 403
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_an_action_is_what_the_command_line_does_but_for_its_author(console, tmp_path):
    """The same alias and the same audit entries, in a registry where a person typed the same."""
    other = Catalog(MemoryStore(), MODEL.name, author="olga")
    for one in SCHEDULES:
        other.publish(one, "by hand")
    other.promote("balanced", FIRST.digest, "the first")
    other.promote("balanced", "2", "cheaper")
    other.rollback("balanced", "worse")
    assert console.act("/tiers/balanced/promote", **ACTIONS["/tiers/balanced/promote"])["version"] == 2
    assert console.catalog.alias("balanced").digest == SECOND.digest
    assert console.act("/tiers/balanced/rollback", reason="worse", moves=2)["version"] == 1
    assert console.catalog.alias("balanced").digest == FIRST.digest

    def told(catalog):
        return [move.audit.model_dump(exclude={"time"}) | {"written": move.written} for move in audited_moves(catalog)][1:]

    assert told(console.catalog) == told(other)
    assert [entry["author"] for entry in told(console.catalog)] == ["olga", "olga"]


def test_where_a_tier_takes_a_second_person_promote_asks_and_another_key_approves(console):
    console.catalog.approvals.set_policy(["balanced"], {"balanced": (FIRST.digest,)}, 24, "", None)
    asked = console.act("/tiers/balanced/promote", **ACTIONS["/tiers/balanced/promote"])
    assert (asked["author"], asked["version"], console.catalog.alias("balanced").digest) == ("olga", 2, FIRST.digest)
    shown = console.get("/tiers")
    assert shown["second_person"] == ["balanced"]
    assert [(one["id"], one["voices"]) for one in shown["requests"]] == [(asked["id"], ["olga"])]
    approve = f"/requests/{asked['id']}/approve"
    assert "another one must" in console.act(approve, 409, reason="me too")["error"]["message"]
    assert console.act(approve, key="otto", reason="seen")["digest"] == SECOND.digest
    assert console.catalog.alias("balanced").history[-1].author == "otto"
    assert console.get("/tiers")["requests"] == []
    console.act("/tiers/balanced/rollback", reason="worse", moves=2)  # takes one
    assert console.act("/requests/0123456789ab/approve", 404, reason="seen")["error"]["code"] == "not_found"


def test_a_request_for_a_tier_that_moves_meanwhile_is_a_conflict(console, monkeypatch):
    console.catalog.promote("balanced", WORSE.digest)
    console.catalog.approvals.set_policy(["balanced"], {"balanced": (FIRST.digest,)}, 24, "", None)
    plain = operator.second_person.request

    def overtaken(*given, **named):
        made = plain(*given, **named)
        console.catalog.rollback("balanced", "somebody else")
        return made

    monkeypatch.setattr(operator.second_person, "request", overtaken)
    error = console.act("/tiers/balanced/promote", 409, schedule="2", reason="cheaper", moves=2)["error"]
    assert error["code"] == "conflict"
    assert "rollback to version 1" in error["message"]


@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_who_saw_an_older_state_is_refused_and_told_what_happened(console, action):
    console.catalog.promote("balanced", WORSE.digest, "an experiment of mine")
    before = everything(console.store)
    body = {"schedule": "2"} if action == "promote" else {}
    error = console.act(f"/tiers/balanced/{action}", 409, reason="r", moves=1, **body)["error"]
    assert error["code"] == "conflict"
    for part in ("promote to version 3", "by ada", "an experiment of mine"):
        assert part in error["message"]
    assert everything(console.store) == before
    console.act(f"/tiers/balanced/{action}", reason="r", moves=2, **body)


def test_a_new_tier_takes_that_there_was_none(console):
    console.act("/tiers/tiny/promote", 409, schedule="2", reason="r", moves=3)
    console.act("/tiers/balanced/promote", 409, schedule="2", reason="r", moves=0)
    assert console.act("/tiers/tiny/promote", schedule="2", reason="r", moves=0)["tier"] == "tiny"


@pytest.mark.parametrize("reason", ["", "x" * 2001, None])
def test_an_action_takes_a_reason(console, reason):
    before = everything(console.store)
    error = console.act("/tiers/balanced/rollback", 400, reason=reason, moves=1)["error"]
    assert error["param"] == "reason"
    assert everything(console.store) == before


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_an_experiment_is_ended_by_the_key_that_ends_it(console, ending):
    console.declare()
    state = console.act(f"/experiments/{NAME}/{ending}", reason="harm", version=1, transitions=2)
    newest = console.experiments.state(NAME).history[-1]
    assert (newest.action, newest.author, newest.reason) == (ending, "olga", "harm")
    assert state["status"] == newest.status == {"stop": "stopped", "kill": "killed"}[ending]


def test_of_experiments_too_a_stale_page_is_refused_but_a_kill_goes_through(console):
    console.declare()
    console.experiments.act(NAME, "ramp", "all is well")
    for action in ("ramp", "stop"):
        error = console.act(f"/experiments/{NAME}/{action}", 409, reason="r", version=1, transitions=2)["error"]
        assert "ramp by" in error["message"]
        assert "all is well" in error["message"]
    assert console.act(f"/experiments/{NAME}/kill", 409, reason="r", version=2, transitions=2)["error"]["param"] == "version"
    assert console.experiments.state(NAME).status == "running"
    assert console.act(f"/experiments/{NAME}/kill", reason="r", version=1, transitions=2)["status"] == "killed"


def test_a_ramp_is_held_to_its_gate_unless_forced(console):
    console.declare()
    body = {"reason": "r", "version": 1, "transitions": 2}
    assert "of 30 minutes at 1 %" in console.act(f"/experiments/{NAME}/ramp", 400, **body)["error"]["message"]
    assert console.act(f"/experiments/{NAME}/ramp", force=True, **body)["stage"] == 1


def test_the_front_says_which_schedules_nothing_beats_and_which_tiers_mean_them(console):
    shown = console.get("/front")
    assert [version["version"] for version in shown["versions"]] == [3, 2, 1]
    assert [version["on_front"] for version in shown["versions"]] == [False, True, True]
    assert [version["tiers"] for version in shown["versions"]] == [[], [], ["balanced"]]
    first = shown["versions"][-1]["figures"]
    assert (first["relative_cost"], first["rfid"]) == MEASURED[0]
    letters = {"full": "F", "partial": "p", "null": "."}
    assert first["strip"] == "".join(letters[step.kind] for step in FIRST.steps())
    assert (console.get("/front?last=1")["older"], shown["older"]) == (2, 0)


def test_a_damaged_document_hides_no_other(console):
    key = console.catalog.schedule_key(SECOND.digest)
    console.store.swap(key, b"{}", console.store.get(key).etag)
    console.store.create(f"{MODEL.name}/aliases/broken.json", b"{}")
    faults = {version["version"]: version["fault"] for version in console.get("/front")["versions"]}
    assert faults[1] is faults[3] is None
    assert "not a schedule" in faults[2]
    tiers = {tier["tier"]: tier for tier in console.get("/tiers")["tiers"]}
    assert tiers["balanced"]["version"] == 1
    assert "Alias" in tiers["broken"]["fault"]


def test_a_tier_says_what_a_rollback_leads_to(console):
    assert console.get("/tiers")["tiers"][0]["back"] is None
    console.catalog.promote("balanced", SECOND.digest)
    (tier,) = console.get("/tiers")["tiers"]
    assert (tier["back"], tier["moves"]) == ({"digest": FIRST.digest, "version": 1}, 2)
    assert [move["version"] for move in tier["history"]] == [2, 1]
    assert len(console.get("/tiers/balanced/moves?last=1")["history"]) == 1


def test_a_schedule_is_shown_with_its_document_and_who_signed_it(tmp_path, monkeypatch):
    key, public = SigningKey.make(tmp_path / "key.pem")
    console = Console(tmp_path, monkeypatch, TrustedKeys.read(public))
    console.catalog.sign(FIRST, key)
    shown = console.get("/schedules/balanced")
    assert Schedule.model_validate(shown["document"]) == FIRST
    assert (shown["signature"]["state"], shown["signature"]["by"], shown["versions"]) == ("trusted", key.id, [1])
    assert console.get("/schedules/2")["signature"]["state"] == "untrusted"
    error = console.act("/tiers/balanced/promote", 403, schedule="2", reason="r", moves=1)["error"]
    assert error["code"] == "untrusted", "no server would serve it"


def test_a_difference_has_both_strips_and_what_changes(console):
    shown = console.get("/schedules/balanced/difference?to=2")
    assert (shown["same"], shown["figures"]["rFID"]) == (False, [4.0, 6.0])
    assert shown["steps"] == [
        step for step, (a, b) in enumerate(zip(shown["a"]["strip"], shown["b"]["strip"], strict=True)) if a != b
    ]


def test_a_report_has_the_intervals_of_now_and_of_before(console):
    console.declare()
    console.saw(400)
    shown = console.get(f"/experiments/{NAME}/report")
    assert [arm["units"] for arm in shown["report"]["arms"]] == [400, 400]
    course = [point for point in shown["course"] if point["effect"]]
    (now,) = [row for row in shown["report"]["comparisons"] if row["metric"] == "service_seconds"]
    assert course[-1]["effect"] == now["ratio"]
    assert [point["units"] for point in shown["course"]] == sorted(point["units"] for point in shown["course"])
    assert shown["by_ratio"]
    assert "minutes" in shown["gate"]


def test_a_report_of_more_events_than_it_may_cost_is_refused(console, monkeypatch):
    console.declare()
    console.saw(50)
    monkeypatch.setattr(operator, "MAX_EVENTS", 99)
    message = console.get(f"/experiments/{NAME}/report", 400)["error"]["message"]
    assert f"python -m server.experiments report {NAME}" in message


def test_a_tiers_candidate_is_shown_with_who_declared_it_and_why_it_makes_no_image_here(console):
    candidates = CandidateCatalog(console.store, MODEL.name, Writer.here("ada"))
    end = datetime(2999, 1, 1, tzinfo=UTC)
    assert console.get("/tiers")["tiers"][0]["candidate"] is None
    assert console.get("/tiers/balanced/shadow", 404)["error"]["param"] == "tier"
    candidates.start(candidate_of(console.catalog, "balanced", "2", 0.1, end), "cheaper")
    console.served.candidates.refused = {"balanced": "no trusted key signed it"}
    shown = console.get("/tiers")
    candidate = shown["tiers"][0]["candidate"]
    assert (candidate["status"], candidate["author"], candidate["reason"]) == ("running", "ada", "cheaper")
    assert candidate["candidate"] == {
        "tier": "balanced", "digest": SECOND.digest, "version": 2, "share": 0.1, "until": "2999-01-01T00:00:00Z"
    }  # fmt: skip
    assert shown["not_compared"] == [{"tier": "balanced", "reason": "no trusted key signed it"}]
    console.catalog.promote("balanced", 2)
    assert console.get("/tiers")["tiers"][0]["candidate"]["status"] == "promoted"


def test_a_candidates_report_has_the_figures_of_both_and_is_bounded(console, monkeypatch):
    candidates = CandidateCatalog(console.store, MODEL.name)
    candidates.start(candidate_of(console.catalog, "balanced", "2", 0.1, datetime(2999, 1, 1, tzinfo=UTC)))
    images = ImageFigures(macs=10, seconds=1.0, psnr=25), ImageFigures(macs=7, seconds=0.75, psnr=24)
    pair = PairEvent(
        time=datetime.now(UTC), request_id="r", model=MODEL.name, tier="balanced", digest=FIRST.digest,
        candidate=SECOND.digest, size="64x64", images=images,
    )  # fmt: skip
    console.store.create(f"{MODEL.name}/{pair_stream('balanced')}/{today()}/00000001.jsonl", write([pair] * 3))
    report = console.get("/tiers/balanced/shadow")["report"]
    ((quality, _, _),) = (found["figures"] for found in report["pairs"])
    assert (quality["figure"], quality["active"], quality["candidate"], quality["effect"]) == ("psnr", 25.0, 24.0, None)
    monkeypatch.setattr(operator, "MAX_EVENTS", 2)
    assert "more than 2 events" in console.get("/tiers/balanced/shadow", 400)["error"]["message"]


def test_a_store_that_is_away_or_can_only_be_read_is_said_to_be(console):
    console.declare()
    console.store.readonly = True
    error = console.act("/tiers/balanced/promote", 503, **ACTIONS["/tiers/balanced/promote"])["error"]
    assert (error["code"], error["message"]) == ("store_unavailable", "registry: may only be read")
    console.store.away = True
    for read in ("/front", "/tiers", "/experiments", "/schedules/balanced"):
        assert console.get(read, 503)["error"]["code"] == "store_unavailable"
    assert console.get("/work")["queue_seconds"] >= 0, "what the server knows itself"


def test_however_many_pages_ask_the_store_is_read_once(console, monkeypatch):
    monkeypatch.setattr(operator, "REGISTRY_SECONDS", 60.0)

    async def go():
        own = Operator([console.served], console.app.settings)
        console.store.reads = 0
        await own.tiers(console.served)
        once = console.store.reads
        answers = await asyncio.gather(*(own.tiers(console.served) for _ in range(50)))
        assert console.store.reads == once > 0
        assert {answer.model for answer in answers} == {MODEL.name}
        await own.promote(console.served, "olga", "balanced", "2", "r", 1)
        assert (await own.tiers(console.served)).tiers[0].version == 2, "what was changed is seen at once"
        own.close()

    asyncio.run(go())
