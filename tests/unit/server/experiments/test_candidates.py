"""A server's candidates: what it follows, refuses by name, keeps while the registry is away, and records."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from memory_store import MemoryStore
from server_model import small_model

from registry.catalog import Catalog
from registry.errors import NotFound, StoreUnavailable
from registry.experiments.candidates import CandidateCatalog, candidate_of
from registry.schedule import Schedule, Segment
from registry.signing import SigningKey, TrustedKeys
from registry.writer import Writer
from server.access.keys import ANONYMOUS
from server.api import GenerateRequest
from server.experiments.candidates import ActiveCandidates
from server.experiments.events import PairEvent, read, write
from server.requests.fidelity import TeacherComparison
from server.requests.planner import Planner
from server.requests.shadow_candidate import CandidatePair, PairedImage
from server.telemetry import metrics
from server.tiers.active import ActiveSchedules
from server.tiers.watch import Watch

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Store(MemoryStore):
    away = False

    def get(self, key):
        if self.away:
            raise StoreUnavailable("is away")
        return super().get(key)

    def folders(self, prefix):
        if self.away:
            raise StoreUnavailable("is away")
        return super().folders(prefix)


class Recorder(list):
    def record(self, stream, event):
        self.append((stream, event))


class Settings:
    request_seconds, default_tier, default_guidance = 60.0, "fast", 2.0


class Site:
    """A registry whose tier `fast` means version 1, and a server of it; version 2 is what may be a candidate."""

    def __init__(self, model, trusted=None):
        self.model, self.store, self.now = model, Store(), NOW
        self.catalog = Catalog(self.store, model.ref.name, author="test")
        for segments in (2, 1):
            self.catalog.publish(self.schedule(segments))
        self.catalog.promote("fast", 1)
        self.candidates = CandidateCatalog(self.store, model.ref.name, Writer("olga", "here", lambda: self.now))
        self.serve(trusted)

    def serve(self, trusted=None):
        """As after a restart."""
        catalog = Catalog(self.store, self.model.ref.name, trusted=trusted)
        self.schedules, self.recorder = ActiveSchedules(lambda: catalog, self.model, 4), Recorder()
        self.watch = Watch(self.schedules, lambda: catalog)
        self.watch.refresh()
        self.active = ActiveCandidates(lambda: self.candidates, self.schedules, self.recorder, lambda: self.now)
        assigner = SimpleNamespace(assign=lambda entry, *_: (entry, None), bypassed=lambda digest: None)
        self.planner = Planner(self.schedules, assigner, self.model, lambda *_: 0.0, Settings())

    def schedule(self, count, **changes):
        fields = {"model": self.model.ref, "solver": self.model.solver("ddim", 4), "segments": (Segment(),) * count}
        return Schedule(**fields | changes)

    def start(self, ref="2", share=0.5, hours=1):
        candidate = candidate_of(self.catalog, "fast", ref, share, NOW + timedelta(hours=hours))
        self.candidates.start(candidate)
        self.active.refresh()

    def plan(self, **fields):
        return asyncio.run(self.planner.plan(GenerateRequest(prompt="a", seed=1, **fields), "id", ANONYMOUS))

    @property
    def compared_by(self):
        """The version that images of the tier are made again with."""
        found = self.active.of(self.plan(tier="fast"))
        return found and found.candidate.version


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture
def site(model):
    return Site(model)


def test_it_follows_what_is_declared_withdrawn_and_over(site):
    assert site.compared_by is None
    site.start()
    assert site.compared_by == 2
    (active,) = site.active.active()
    assert (active.candidate.share, active.entry.digest) == (0.5, site.catalog.version(2).digest)
    assert metrics.candidate_info.labels("fast", active.entry.digest, 2)._value.get() == 1
    site.candidates.stop("fast")
    site.active.refresh()
    assert site.compared_by is None
    assert metrics.candidate_info.labels("fast", active.entry.digest, 2)._value.get() == 0
    site.start()
    site.now += timedelta(hours=1)
    assert site.compared_by is None, "without another look"
    assert site.active.active() == []


def test_a_restarted_server_takes_it_up_again(site):
    site.start()
    site.serve()
    site.active.refresh()
    assert site.compared_by == 2


def test_while_the_registry_is_away_the_last_known_one_stays_until_its_time_is_over(site):
    site.start()
    site.store.away = True
    site.active.refresh()
    assert site.compared_by == 2
    site.now += timedelta(hours=1)
    assert site.compared_by is None


def test_a_damaged_record_leaves_what_was_and_hides_no_other_tiers(site, caplog):
    site.start()
    key = "tiny/candidates/fast/state.json"
    site.store._objects[key] = b"{}"
    site.active.refresh()
    assert site.compared_by == 2
    assert "the candidate of tier fast, version 2" in caplog.text
    assert "goes on: tiny/candidates/fast/state.json: is not a valid CandidateState" in caplog.text


def test_only_images_of_the_tiers_own_schedule_are_made_again(site):
    site.start()
    assert site.active.of(site.plan(schedule="1")) is None, "a request that names its schedule is of no tier"
    assert site.active.of(site.plan(tier="reference")) is None
    arm = site.plan(tier="fast")
    other = site.schedules.load(site.catalog.version(2).digest)
    assert site.active.of(SimpleNamespace(entry=SimpleNamespace(tier="fast", digest=other.digest))) is None
    assert site.active.of(arm)


def test_where_the_tier_is_the_teachers_there_is_nothing_to_compare(site):
    site.start()
    site.catalog.publish(site.schedule(4))
    site.catalog.promote("fast", 3)
    site.watch.refresh()
    site.active.refresh()
    assert site.compared_by is None
    assert site.active.refused == {"fast": "tier fast is the teacher, with which images are compared"}
    assert metrics.candidates_unserved._value.get() == 1


def test_an_image_of_before_a_promotion_is_paired_with_nothing_and_the_promoted_candidate_says_so(site, caplog):
    caplog.set_level("INFO")
    site.start()
    before = site.plan(tier="fast")
    site.catalog.publish(site.schedule(2, segments=(Segment(partial=(1,)), Segment())))
    site.catalog.promote("fast", 3)
    site.watch.refresh()
    assert site.active.of(before) is None
    assert site.compared_by == 2
    site.catalog.promote("fast", 2)
    site.watch.refresh()
    assert site.compared_by is None, "at once"
    site.active.refresh()
    site.active.refresh()
    assert caplog.text.count("tier fast means its candidate now, version 2: it is made again no longer") == 1
    assert (site.active.refused, site.active.active()) == ({}, []), "nothing is wrong with it"
    site.catalog.rollback("fast")
    site.watch.refresh()
    site.active.refresh()
    assert (site.compared_by, site.active.refused) == (2, {})


def test_it_is_refused_by_name_where_it_does_not_fit_the_model(site, caplog):
    wrong = site.schedule(1, segments=(Segment(partial=(1,), branch=99),))
    site.catalog.publish(wrong)
    site.start("3")
    assert site.compared_by is None
    assert "branch" in site.active.refused["fast"]
    assert caplog.text.count("the candidate of tier fast, version 3") == 1
    site.active.refresh()
    assert caplog.text.count("the candidate of tier fast, version 3") == 1, "a fault that lasts is said once"


def test_it_is_refused_where_no_trusted_key_signed_it(model, tmp_path):
    key, public = SigningKey.make(tmp_path / "key.pem")
    site = Site(model)
    site.catalog.sign(site.catalog.resolve("1").schedule, key)
    site.serve(TrustedKeys.read(public))
    site.start()
    assert site.compared_by is None
    assert "signed" in site.active.refused["fast"]
    site.catalog.sign(site.catalog.resolve("2").schedule, key)
    site.active.refresh()
    assert site.compared_by == 2


def test_one_whose_document_was_changed_is_refused(site):
    site.start()
    digests = [site.catalog.version(number).digest for number in (1, 2)]
    kept, changed = (f"tiny/schedules/{digest}.json" for digest in digests)
    site.store._objects[changed] = site.store._objects[kept]
    site.serve()
    site.active.refresh()
    assert site.compared_by is None
    assert "was changed after it was published" in site.active.refused["fast"]


def test_it_is_no_tier_and_no_schedule_at_hand_for_clients(site):
    site.start()
    digest = site.catalog.version(2).digest
    assert site.schedules.at_hand(digest) is None
    assert digest not in [entry.digest for entry in site.schedules.tiers()]
    with pytest.raises(NotFound):
        site.schedules.tier("candidate")


def test_a_pair_is_recorded_with_both_digests_and_without_the_prompt(site):
    site.start()
    plan = site.plan(tier="fast")
    images = [PairedImage(macs, 0.1 * macs, TeacherComparison(20.0 + macs, 0.5, None)) for macs in (4, 3)]
    site.active.paired(plan, CandidatePair(site.active.of(plan), tuple(images)))
    site.active.paired(plan, CandidatePair(site.active.of(plan), None, "generation_failed"))
    (stream, made), (_, failed) = site.recorder
    assert stream == "candidates/fast/events"
    assert (made.digest, made.candidate) == (site.catalog.version(1).digest, site.catalog.version(2).digest)
    assert [(image.macs, image.psnr) for image in made.images] == [(4, 24.0), (3, 23.0)]
    assert (failed.images, failed.failed) == (None, "generation_failed")
    assert list(read("key", write([made, failed]))) == [made, failed]
    assert "prompt" not in PairEvent.model_fields
