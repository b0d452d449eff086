"""Schedules are found by the fingerprint of their model, under whatever name they lie."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dying_store import Clock, DyingStore
from schedule_strategies import schedule

from registry.catalog import Catalog
from registry.errors import StoreUnavailable
from registry.models import models_of, published_model, published_models
from registry.schedule import ModelRef, Schedule
from registry.signing import SigningKey, TrustedKeys
from registry.stores.base import ObjectStore

ONE, OTHER = (f"sha256:{digit * 64}" for digit in "12")


@pytest.fixture
def store() -> DyingStore:
    return DyingStore()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def promote(store: ObjectStore, clock: Clock, name: str, fingerprint: str, tier: str = "fast", *partial: int) -> Schedule:
    ref = ModelRef(name=name, family="unet2d-condition", fingerprint=fingerprint)
    made = schedule(*partial).model_copy(update={"model": ref})
    catalog = Catalog(store, name, clock=clock, author="ada")
    catalog.publish(made)
    catalog.promote(tier, made.digest)
    clock.time += timedelta(hours=1)
    return made


def test_a_model_is_found_by_its_fingerprint_whatever_it_is_called(store: DyingStore, clock: Clock) -> None:
    promote(store, clock, "a", OTHER)
    promote(store, clock, "b", ONE)
    assert models_of(published_models(store), ONE) == ["b"]
    assert models_of(published_models(store), OTHER) == ["a"]
    assert models_of(published_models(store), f"sha256:{'3' * 64}") == []


def test_of_several_names_the_one_whose_tier_moved_last_comes_first(store: DyingStore, clock: Clock) -> None:
    for name in ("b", "c", "a"):
        promote(store, clock, name, ONE)
    assert models_of(published_models(store), ONE) == ["a", "c", "b"]
    promote(store, clock, "a", OTHER, "best")  # a move to other weights says nothing
    promote(store, clock, "b", ONE, "best")
    assert models_of(published_models(store), ONE) == ["b", "a", "c"]


def test_a_name_may_have_tiers_of_several_weights(store: DyingStore, clock: Clock) -> None:
    promote(store, clock, "a", ONE, "fast")
    promote(store, clock, "a", OTHER, "best")
    (found,) = published_models(store)
    assert {name: tier.fingerprint for name, tier in found.tiers.items()} == {"fast": ONE, "best": OTHER}
    assert found.serves(ONE)
    assert found.serves(OTHER)


def test_what_a_tier_meant_before_is_no_longer_found(store: DyingStore, clock: Clock) -> None:
    promote(store, clock, "a", ONE)
    promote(store, clock, "a", OTHER)
    assert models_of(published_models(store), ONE) == []


@pytest.mark.parametrize("damage", [b"", b"[" * 1000, b"\xff\xfe", b'{"format": 9}', b"<html>"])
@pytest.mark.parametrize("what", ["alias", "schedule"])
def test_what_is_damaged_hides_nothing_else(store: DyingStore, clock: Clock, damage: bytes, what: str) -> None:
    bad = promote(store, clock, "a", ONE)
    promote(store, clock, "a", ONE, "best", 5)
    promote(store, clock, "b", ONE)
    store.overwrite("a/aliases/fast.json" if what == "alias" else f"a/schedules/{bad.digest}.json", damage)
    store.overwrite("a/aliases/12345678.json", b"no tier can be called so")
    store.overwrite("Not a model/aliases/fast.json", b"")
    assert models_of(published_models(store), ONE) == ["b", "a"]
    assert models_of([published_model(store, "b")], ONE) == ["b"]


def test_a_trusted_name_comes_before_one_that_moved_later(store: DyingStore, clock: Clock) -> None:
    private = Ed25519PrivateKey.generate()
    key = SigningKey(private)
    signed = promote(store, clock, "b", ONE)
    Catalog(store, "b").sign(signed, key)
    promote(store, clock, "a", ONE)
    trusted = TrustedKeys({key.id: private.public_key()})
    assert models_of(published_models(store), ONE) == ["a", "b"]
    assert models_of(published_models(store, trusted), ONE) == ["b", "a"]


def test_a_model_without_tiers_has_none(store: DyingStore) -> None:
    assert published_model(store, "nowhere").tiers == {}
    assert published_models(store) == []


def test_a_store_that_goes_away_is_said(store: DyingStore, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(store, clock, "a", ONE)

    def away(_key: str) -> None:
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(store, "get", away)
    with pytest.raises(StoreUnavailable):
        published_models(store)
