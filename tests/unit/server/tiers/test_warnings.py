"""Tiers that the registry has and a server does not serve: said once in the log, and as long as it holds everywhere else."""

from __future__ import annotations

import logging

import pytest
from server_model import small_model
from watched_site import TRUSTED, Site, Watched

from registry.schedule import Validated
from server.telemetry import metrics
from server.tiers.warnings import in_one_line, tier_warnings
from server.tiers.watch import Watch

OTHER = f"sha256:{'1' * 64}"


@pytest.fixture
def site(tiny, tmp_path):
    return Site(Watched(), small_model(tiny), tmp_path / "state")


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "server.tiers.watch")
    return lambda: [record.getMessage() for record in caplog.records]


def for_other_weights(site, *branches):
    return site.schedule(*branches, model=site.model.ref.model_copy(update={"fingerprint": OTHER}))


def codes(schedules, default_tier="balanced"):
    return [warning.code for warning in tier_warnings(schedules, default_tier)]


def counted():
    return metrics.tiers_served._value.get(), metrics.tiers_unserved._value.get()


def test_a_registry_whose_tiers_are_all_served_is_no_reason_for_a_word(site, said):
    site.promote("balanced", site.schedule(0))
    schedules, watch = site.server()
    watch.refresh()
    assert (codes(schedules), said(), counted()) == ([], [], (1, 0))


def test_a_registry_without_tiers_is_said_once(site, said):
    schedules, watch = site.server()
    watch.refresh()
    watch.refresh()
    assert said() == ["the registry holds no tiers of tiny: only reference, the unaccelerated teacher, is served"]
    assert (codes(schedules, "reference"), counted()) == (["no_tiers"], (0, 0))
    assert codes(schedules) == ["no_tiers", "default_tier_not_served"]


def test_a_registry_with_the_teacher_alone_is_said_as_one_without_tiers(site, said):
    site.promote("reference", site.schedule(0, 0, 0, 0))
    schedules, watch = site.server()
    watch.refresh()
    assert schedules.tier("reference").version == 1
    assert (codes(schedules, "reference"), schedules.served(), counted()) == (["no_tiers"], [], (0, 0))
    assert said()[0].startswith("the registry holds no tiers of tiny but reference: only reference")


@pytest.mark.parametrize("default_tier", ["balanced", "balancd"])
def test_whether_the_default_tier_is_served_is_a_metric(site, default_tier):
    site.promote("balanced", site.schedule(0))
    schedules, watch = site.server()
    Watch(schedules, watch._open_catalog, default_tier=default_tier).refresh()
    assert metrics.default_tier_served._value.get() == (not codes(schedules, default_tier))


def test_tiers_that_are_all_refused_for_one_reason_are_one_line(site, said):
    for tier in ("draft", "balanced", "best"):
        site.promote(tier, for_other_weights(site, 0, 1))
    schedules, watch = site.server()
    watch.refresh()
    watch.refresh()
    (line,) = said()
    assert line.startswith("none of the registry's tiers of tiny is served, only reference, the unaccelerated teacher: ")
    assert (
        f"balanced, best, draft: model.fingerprint: the schedule was made for other weights ({OTHER[:19]}…, called tiny)"
        in line
    )
    assert f"({site.model.ref.fingerprint[:19]}…)" in line
    assert (codes(schedules, "reference"), counted()) == (["no_tier_served"], (0, 3))
    assert set(schedules.refused) == {"draft", "balanced", "best"}


def test_what_changes_is_said_again_and_what_is_mended_too(site, said):
    site.promote("balanced", for_other_weights(site, 0))
    schedules, watch = site.server()
    watch = Watch(schedules, watch._open_catalog, default_tier="balanced")
    watch.refresh()
    site.promote("draft", site.schedule(0))
    watch.refresh()
    watch.refresh()
    assert codes(schedules) == ["tiers_not_served", "default_tier_not_served"]
    assert said()[1].startswith("not served of the registry's tiers of tiny: balanced: model.fingerprint: ")
    assert said()[1].endswith(
        "; the default tier balanced is not served: requests that name no tier get reference, the unaccelerated teacher"
    )
    assert counted() == (1, 1)
    site.promote("balanced", site.schedule(1))
    watch.refresh()
    assert (codes(schedules), said()[2:], counted()) == ([], [f"no longer: {said()[1]}"], (2, 0))


@pytest.mark.parametrize("why", ["size", "untrusted", "damaged"])
def test_every_reason_is_named(site, said, why):
    schedule = site.schedule(1, validated=Validated(sizes=((32, 32),), guidance=(3.0,)) if why == "size" else None)
    site.promote("balanced", schedule)
    if why == "damaged":
        site.store.overwrite(site.key(f"schedules/{schedule.digest}.json"), b"{}")
    schedules, watch = site.server(TRUSTED if why == "untrusted" else None)
    watch.refresh()
    wanted = {"size": "measured at 32x32", "untrusted": "not signed by a trusted key", "damaged": "is not a schedule"}[why]
    (line,) = said()
    assert wanted in line
    assert wanted in schedules.refused["balanced"]


def test_a_tier_that_keeps_its_older_version_is_served(site):
    site.promote("balanced", site.schedule(0))
    schedules, watch = site.server()
    watch.refresh()
    site.promote("balanced", for_other_weights(site, 0))
    watch.refresh()
    assert (codes(schedules), counted()) == ([], (1, 0))


def test_a_kept_set_that_fits_no_more_is_said_too(site, said):
    site.promote("balanced", site.schedule(0))
    site.started()
    site.store.down = RuntimeError("no answer")
    schedules, watch = site.server(TRUSTED)
    assert not watch.refresh()
    assert watch.fault == "the registry could not be read: no answer"
    assert watch.restore()
    assert watch.restore()
    assert codes(schedules) == ["no_tier_served", "default_tier_not_served"]
    assert [line.startswith("the registry is away: serving what it said at ") for line in said()].count(True) == 1


def test_many_reasons_are_cut(site):
    for number, branches in enumerate([(0,), (1,), (0, 0), (0, 1), (1, 1)]):
        validated = Validated(sizes=((32 + number, 32),), guidance=(3.0,))
        site.promote("abcde"[number], site.schedule(*branches, validated=validated))
    assert "; and 2 more reasons" in in_one_line(tier_warnings(site.started(), "a"))


def test_the_same_weights_under_another_name_are_named_until_a_tier_is_served(site, said):
    schedules, watch = site.server()
    asked = []
    watch = Watch(schedules, watch._open_catalog, None, "balanced", lambda: asked.append(1) or ["emoji64"])
    watch.refresh()
    watch.refresh()
    assert [
        "; it has tiers for these weights as emoji64: set FLEXI_MODEL_NAME=emoji64; the default tier" in line for line in said()
    ] == [True]
    site.promote("balanced", site.schedule(0))
    watch.refresh()
    assert (schedules.elsewhere, len(asked)) == ((), 2)
