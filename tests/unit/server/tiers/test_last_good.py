"""The last good set: a server starts from it while the registry is away, and believes nothing in it unseen."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from server_model import small_model
from watched_site import TRUSTED, Site, Watched

from registry.errors import StoreUnavailable
from registry.signing import SigningKey, TrustedKeys


@pytest.fixture
def site(tiny, tmp_path):
    return Site(Watched(), small_model(tiny), tmp_path / "state")


def file(site):
    (path,) = site.state.glob("*.json")
    return path


@pytest.mark.parametrize("trusted", [None, TRUSTED])
def test_a_server_starts_with_the_registry_away(site, trusted):
    for tier, branches in {"fast": (1, 1), "best": (0, 2), "reference": (0, 0, 0, 0)}.items():
        site.promote(tier, site.schedule(*branches), sign=True)
    before = site.started(trusted).tiers()
    site.store.down = StoreUnavailable("no answer")
    schedules, watch = site.server(trusted)
    assert not watch.refresh()
    assert watch.restore()
    assert schedules.tiers() == before
    site.store.down = None
    moved = site.promote("fast", site.schedule(2), sign=True)
    assert watch.refresh()
    assert schedules.tier("fast").digest == moved.digest


def test_a_tier_that_is_refused_at_a_start_is_what_it_was_kept_as(site):
    """The server before refused the same move, and served on: a restart must not take the tier away, nor forget it."""
    kept, other = site.promote("fast", site.schedule(1)), site.promote("best", site.schedule(0, 2))
    site.started()
    site.promote("fast", site.schedule(2))
    key = f"{site.publisher.model}/aliases/fast.json"
    site.store.overwrite(key, b"{")
    for _ in range(2):
        schedules, watch = site.server()
        assert watch.refresh()
        assert {entry.tier: entry.digest for entry in schedules.tiers() if entry.version} == {
            "fast": kept.digest,
            "best": other.digest,
        }


def test_nothing_is_restored_where_nothing_was_kept(site):
    schedules, watch = site.server()
    assert not watch.restore()
    site.promote("fast", site.schedule(1))
    site.started()
    _, of_another_registry = site.server(registry="s3://elsewhere")
    assert not of_another_registry.restore()
    assert [entry.tier for entry in schedules.tiers()] == ["reference"]


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x00", b'{"format": 2}'])
def test_a_damaged_file_is_not_restored(site, damage):
    site.promote("fast", site.schedule(1))
    site.started()
    file(site).write_bytes(damage)
    _, watch = site.server()
    assert not watch.restore()


@pytest.mark.parametrize(("trusted", "good"), [(TRUSTED, {"whole"}), (None, {"whole", "unsigned"})])
def test_each_kept_tier_is_verified(site, trusted, good):
    """One document was changed, one lost its signature, one is as it was."""
    for tier, branches in {"changed": (1,), "unsigned": (2,), "whole": (0, 1)}.items():
        site.promote(tier, site.schedule(*branches), sign=True)
    site.started(TRUSTED)
    kept = json.loads(file(site).read_bytes())
    by_name = {tier["tier"]: tier for tier in kept["tiers"]}
    by_name["changed"]["schedule"] = by_name["changed"]["schedule"].replace('"branch":1', '"branch":3')
    by_name["unsigned"]["signature"] = None
    file(site).write_text(json.dumps(kept))
    restored, watch = site.server(trusted)
    assert watch.restore()
    assert {entry.tier for entry in restored.tiers()} == {*good, "reference"}


def test_a_key_that_is_trusted_no_more_restores_nothing(site):
    site.promote("fast", site.schedule(1), sign=True)
    site.started(TRUSTED)
    other = Ed25519PrivateKey.generate()
    schedules, watch = site.server(TrustedKeys({SigningKey(other).id: other.public_key()}))
    watch.restore()
    assert [entry.tier for entry in schedules.tiers()] == ["reference"]


def test_it_is_written_when_something_moved(site):
    site.promote("fast", site.schedule(1))
    _, watch = site.server()
    watch.refresh()
    written = file(site).stat().st_ino
    watch.refresh()
    assert file(site).stat().st_ino == written
    site.promote("fast", site.schedule(2))
    watch.refresh()
    assert file(site).stat().st_ino != written
    assert [path.name for path in site.state.iterdir()] == [file(site).name]


def test_a_disk_that_takes_nothing_stops_no_server(site):
    site.state.write_bytes(b"a file where the folder should be")
    site.promote("fast", site.schedule(1))
    schedules, watch = site.server()
    assert watch.refresh()
    assert schedules.tier("fast").version == 1
