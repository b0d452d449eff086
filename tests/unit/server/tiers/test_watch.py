"""The watch: what a look costs, and what a bad tier does to itself and to the others."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from server_model import small_model
from watched_site import KEY, TRUSTED, Site, Watched

from registry import second_person
from registry.catalog import Catalog
from registry.errors import StoreUnavailable, Unsupported, Untrusted
from registry.records import Target
from registry.schedule import Validated, teacher
from server.telemetry import metrics
from server.tiers.watch import Watch


@pytest.fixture
def site(tiny, tmp_path):
    return Site(Watched(), small_model(tiny), tmp_path / "state")


def stale(tier):
    return metrics.tier_stale.labels(tier)._value.get()


class TestFollowing:
    def test_a_look_at_what_did_not_move_reads_no_document(self, site):
        for tier, branch in (("fast", 0), ("best", 1)):
            site.promote(tier, site.schedule(branch))
        schedules, watch = site.server()
        watch.refresh()
        in_force = schedules.tiers()
        site.store.asked.clear()
        watch.refresh()
        aliases = [("get_if_changed", site.key(f"aliases/{tier}.json")) for tier in ("best", "fast")]
        assert site.store.asked[-2:] == aliases
        assert [verb for verb, _ in site.store.asked].count("get") == 0
        assert schedules.tiers() == in_force

    def test_only_the_tier_that_moved_is_read(self, site):
        site.promote("fast", site.schedule(0))
        site.promote("best", site.schedule(1))
        schedules, watch = site.server()
        watch.refresh()
        best = schedules.tier("best")
        moved = site.promote("fast", site.schedule(1, 1))
        site.store.asked.clear()
        watch.refresh()
        assert [key for verb, key in site.store.asked if verb == "get"] == [site.key(f"schedules/{moved.digest}.json")]
        assert schedules.tier("fast").digest == moved.digest
        assert schedules.tier("best").program is best.program

    def test_a_request_that_runs_keeps_its_schedule(self, site):
        first = site.promote("fast", site.schedule(0))
        schedules, watch = site.server()
        watch.refresh()
        running = schedules.tier("fast")
        site.promote("fast", site.schedule(1))
        watch.refresh()
        assert running.digest == first.digest != schedules.tier("fast").digest
        assert running.program.schedule == first

    def test_nothing_that_vanishes_takes_a_tier_away(self, site):
        good = site.promote("fast", site.schedule(0))
        schedules, watch = site.server()
        watch.refresh()
        site.store.remove(site.key("aliases/fast.json"))
        assert watch.refresh()
        assert (schedules.tier("fast").digest, stale("fast")) == (good.digest, 1)
        assert [entry.tier for entry in site.started().tiers()] == ["reference"]

    def test_a_fault_is_logged_once_and_counted_each_time(self, site, caplog):
        site.promote("fast", site.schedule(0))
        _, watch = site.server()
        watch.refresh()
        site.store.down = StoreUnavailable("no answer")
        before = metrics.registry_errors_total._value.get()
        with caplog.at_level(logging.INFO, "server.tiers.watch"):
            for _ in range(3):
                assert not watch.refresh()
            site.store.down = None
            assert watch.refresh()
        said = [record.getMessage() for record in caplog.records]
        fault = "the registry could not be read: no answer"
        assert said == [fault, f"no longer: {fault}"]
        assert metrics.registry_errors_total._value.get() == before + 3

    def test_looks_are_spread_in_time(self, site, monkeypatch):
        pauses = []

        async def sleep(seconds):
            pauses.append(seconds)
            if len(pauses) == 200:
                raise asyncio.CancelledError

        _, watch = site.server()
        monkeypatch.setattr("server.tiers.looks.asyncio.sleep", sleep)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(watch.follow(5))
        assert 4 <= min(pauses) < 4.5 < 5.5 < max(pauses) <= 6

    def test_a_registry_that_can_never_be_read_stops_the_start_and_nothing_later(self, site):
        def unfit():
            raise Unsupported("the store ignores If-None-Match")

        schedules, watch = site.server()
        with pytest.raises(Unsupported):
            Watch(schedules, unfit).refresh()
        watch.refresh()
        watch._open_catalog = unfit
        assert not watch.refresh()


class TestRefusals:
    """Each bad document leaves its tier as it was, names what and why, and freezes no other tier."""

    def refused(self, site, caplog, bad, *, trusted=None, damage=None):
        """The log line about `bad`, promoted to `fast` where a good schedule was."""
        good = site.promote("fast", site.schedule(0), sign=True)
        schedules, watch = site.server(trusted)
        watch.refresh()
        site.promote("fast", bad)
        if damage:
            site.store.overwrite(site.key(f"schedules/{bad.digest}.json"), damage)
        other = site.promote("best", site.schedule(1), sign=True)
        with caplog.at_level(logging.WARNING, "server.tiers.watch"):
            assert watch.refresh()
        assert (schedules.tier("fast").digest, schedules.tier("best").digest) == (good.digest, other.digest)
        assert (stale("fast"), stale("best")) == (1, 0)
        (record,) = caplog.records
        assert record.getMessage().startswith(f"tier fast keeps version 1 ({good.digest[:8]}): ")
        return record.getMessage()

    def test_tampered(self, site, caplog):
        bad = site.schedule(1, 1)
        said = self.refused(site, caplog, bad, damage=site.schedule(2).document())
        assert f"schedules/{bad.digest}.json: was changed after it was published" in said

    def test_of_a_format_to_come(self, site, caplog):
        bad = site.schedule(1, 1)
        document = json.dumps(json.loads(bad.document()) | {"format": 2}).encode()
        said = self.refused(site, caplog, bad, damage=document)
        assert f"schedules/{bad.digest}.json: cannot be read: format: this version reads 1, got 2" in said

    def test_of_an_unknown_solver(self, site, caplog):
        bad = site.schedule(1, 1)
        said = self.refused(site, caplog, bad, damage=bad.document().replace(b'"ddim"', b'"heun"'))
        assert f"schedules/{bad.digest}.json: is not a schedule: solver.name" in said

    def test_for_other_weights(self, site, caplog):
        ref = site.model.ref.model_copy(update={"fingerprint": f"sha256:{'1' * 64}"})
        assert "model.fingerprint: the schedule was made for" in self.refused(site, caplog, site.schedule(1, 1, model=ref))

    def test_for_another_family(self, site, caplog):
        ref = site.model.ref.model_copy(update={"family": "unet2d"})
        said = self.refused(site, caplog, site.schedule(1, 1, model=ref))
        assert "model.family: the schedule was made for unet2d, the loaded model is unet2d-condition" in said

    def test_measured_at_another_size(self, site, caplog):
        bad = site.schedule(1, 1, validated=Validated(sizes=((16, 8), (32, 32)), guidance=(3.0,)))
        said = self.refused(site, caplog, bad)
        assert "validated.sizes: the schedule was measured at 8x16, 32x32, this server makes 8x8" in said

    def test_unsigned(self, site, caplog):
        bad = site.schedule(1, 1)
        said = self.refused(site, caplog, bad, trusted=TRUSTED)
        assert f"schedules/{bad.digest}.json is not signed by a trusted key ({KEY.id})" in said

    def test_measured_at_this_size_among_others(self, site):
        good = site.promote("fast", site.schedule(1, validated=Validated(sizes=((16, 8), (8, 8)), guidance=(3.0,))))
        assert site.started().tier("fast").digest == good.digest


class TestTrust:
    def test_a_signature_made_later_mends_the_tier(self, site):
        schedule = site.promote("fast", site.schedule(1))
        schedules, watch = site.server(TRUSTED)
        watch.refresh()
        assert [entry.tier for entry in schedules.tiers()] == ["reference"]
        with pytest.raises(Untrusted) as refused:
            schedules.explicit(schedule.digest)
        assert refused.value.param == "schedule"
        site.publisher.sign(schedule, KEY)
        watch.refresh()
        assert (schedules.tier("fast").digest, stale("fast")) == (schedule.digest, 0)

    def test_signatures_are_read_when_a_schedule_is_loaded_and_not_at_each_look(self, site):
        site.promote("fast", site.schedule(1), sign=True)
        _, watch = site.server(TRUSTED)

        def signatures_read():
            return sum("/signatures/" in key for _, key in site.store.asked)

        site.store.asked.clear()
        watch.refresh()
        assert signatures_read() == 1
        watch.refresh()
        assert signatures_read() == 1

    def test_the_own_teacher_needs_no_signature(self, site):
        own = teacher(site.model.ref, site.model.solver("ddim", 4))
        site.promote("reference", own)
        schedules, watch = site.server(TRUSTED)
        assert watch.refresh()
        assert (schedules.tier("reference").version, stale("reference")) == (1, 0)


class TestSecondPerson:
    def test_a_move_that_no_second_person_stands_for_leaves_the_tier_as_it_was_and_is_told(self, site):
        first = site.promote("fast", site.schedule(0))
        schedules, watch = site.server()
        watch.refresh()
        site.publisher.approvals.set_policy(["fast"], {"fast": (first.digest,)}, 24, "", None)
        second = site.schedule(1)
        number = site.publisher.publish(second).number
        target = Target(digest=second.digest, version=number)
        site.publisher.tier_aliases.move("promote", "fast", lambda _: target, "around the policy")
        assert watch.refresh()
        assert (schedules.tier("fast").digest, stale("fast")) == (first.digest, 1)
        site.publisher.rollback("fast")
        watch.refresh()
        assert (schedules.tier("fast").digest, stale("fast")) == (first.digest, 0)
        asked = second_person.request(site.publisher, "fast", second.digest)
        second_person.approve(Catalog(site.store, site.model.ref.name, author="other"), asked.id)
        watch.refresh()
        assert (schedules.tier("fast").digest, stale("fast")) == (second.digest, 0)
