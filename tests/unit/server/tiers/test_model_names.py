"""A server finds its tiers by the fingerprint of its model, whatever the folder or the registry calls it."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from server_model import small_model
from watched_site import TRUSTED, Site, Watched

from registry.catalog import Catalog
from registry.errors import StoreUnavailable, Unsupported
from server.tiers import model_names
from server.tiers.last_good import LastGood
from server.tiers.model_names import ModelNames

OTHER = f"sha256:{'1' * 64}"


def called(model, name, fingerprint=None):
    """The same weights under another name, or others."""
    return replace(model, ref=model.ref.model_copy(update={"name": name, "fingerprint": fingerprint or model.ref.fingerprint}))


class Sites:
    """Publishers of several names in one registry, and a server in a folder that is called `mount`."""

    def __init__(self, model, state):
        self.store, self.model, self.state = Watched(), called(model, "mount"), state

    def promote(self, name, fingerprint=None, tier="fast", sign=False):
        site = Site(self.store, called(self.model, name, fingerprint), self.state)
        return site.promote(tier, site.schedule(1), sign=sign)

    def names(self, trusted=None, model=None):
        return ModelNames(model or self.model, lambda: self.store, (self.state, "memory"), trusted)

    def keep(self, name):
        """What a server that serves this name keeps."""
        site = Site(self.store, called(self.model, name), self.state)
        _, watch = site.server()
        assert watch.refresh()


@pytest.fixture
def sites(tiny, tmp_path):
    return Sites(small_model(tiny), tmp_path / "state")


def test_without_tiers_of_these_weights_the_model_is_called_as_its_folder(sites):
    assert sites.names().find() == "mount"
    sites.promote("other", OTHER)
    sites.promote("mount", OTHER)
    assert sites.names().find() == "mount"


def test_tiers_are_found_under_another_name(sites, caplog):
    sites.promote("mount", OTHER)
    sites.promote("published")
    with caplog.at_level(logging.INFO, model_names.__name__):
        assert sites.names().find() == "published"
    assert [record.getMessage() for record in caplog.records] == ["the registry calls this model published, its folder mount"]


def test_the_own_name_comes_first_and_no_other_is_read(sites):
    sites.promote("mount")
    sites.promote("published")
    sites.store.asked.clear()
    assert sites.names().find() == "mount"
    assert all(key.startswith("mount/") for _, key in sites.store.asked)


def test_of_several_names_one_is_chosen_and_the_choice_is_said(sites, caplog):
    sites.promote("b")
    sites.promote("a")
    with caplog.at_level(logging.WARNING, model_names.__name__):
        assert sites.names().find() == "a"
    (said,) = (record.getMessage() for record in caplog.records)
    assert said == ("the registry has tiers of this model under a, b: serving those of a, FLEXI_MODEL_NAME chooses")
    sites.keep("b")
    assert sites.names().find() == "b"  # a server does not turn to another name by being started again


def test_names_whose_tiers_nobody_trusts_come_last(sites):
    sites.promote("b", sign=True)
    sites.promote("a")
    assert sites.names(TRUSTED).find() == "b"


def test_tiers_made_while_all_files_counted_are_found(sites):
    sites.promote("published", OTHER)
    earlier = replace(sites.model, earlier_fingerprint=lambda: OTHER)
    assert sites.names(model=earlier).find() == "published"


def test_all_files_are_hashed_only_where_it_may_help(sites):
    def never():
        raise AssertionError

    model = replace(sites.model, earlier_fingerprint=never)
    assert sites.names(model=model).find() == "mount"
    sites.promote("published")
    assert sites.names(model=model).find() == "published"


@pytest.mark.parametrize(("kept", "found"), [(["published"], "published"), (["published", "mount"], "mount")])
def test_with_the_registry_away_a_kept_set_of_these_weights_names_it(sites, kept, found):
    for name in kept:
        sites.promote(name)
        sites.keep(name)
    sites.store.down = StoreUnavailable("no answer")
    assert sites.names().find() == found


def test_a_kept_set_of_other_weights_or_of_another_registry_names_nothing(sites):
    sites.promote("published", OTHER)
    site = Site(sites.store, called(sites.model, "published", OTHER), sites.state)
    site.server()[1].refresh()
    sites.promote("elsewhere")
    Site(sites.store, called(sites.model, "elsewhere"), sites.state).server(registry="another")[1].refresh()
    (sites.state / "damaged-0.json").write_text("{")
    LastGood(sites.state, "memory", "damaged").path.write_text("{")
    sites.store.down = StoreUnavailable("no answer")
    assert sites.names().find() is None


def test_without_a_kept_set_one_asks_again_and_it_is_said_once(sites, caplog):
    sites.promote("published")
    sites.store.down = StoreUnavailable("no answer")
    names = sites.names()
    with caplog.at_level(logging.INFO, model_names.__name__):
        assert [names.find(), names.find()] == [None, None]
        sites.store.down = None
        assert names.find() == "published"
    fault = "the registry could not be read: no answer"
    assert [record.getMessage() for record in caplog.records][:2] == [fault, f"no longer: {fault}"]


def test_a_registry_that_can_never_be_read_stops_the_start(sites):
    def unfit():
        raise Unsupported("the store ignores If-None-Match")

    with pytest.raises(Unsupported):
        ModelNames(sites.model, unfit, (sites.state, "memory")).find()


class TestElsewhere:
    def test_tiers_that_come_after_the_start_are_found(self, sites, monkeypatch):
        names = sites.names()
        assert names.find() == "mount"
        sites.promote("published")
        assert names.elsewhere() == []  # it has looked just now
        monkeypatch.setattr(model_names, "PAUSE", 0)
        assert names.elsewhere() == ["published"]

    def test_all_models_are_looked_at_only_now_and_then(self, sites):
        sites.promote("published")
        names = sites.names()
        assert names.elsewhere() == ["published"]
        sites.store.asked.clear()
        assert names.elsewhere() == ["published"]
        assert sites.store.asked == []

    def test_it_is_no_fault_that_a_store_is_away(self, sites):
        sites.store.down = StoreUnavailable("no answer")
        assert sites.names().elsewhere() == []

    def test_the_found_name_is_not_elsewhere(self, sites):
        sites.promote("b")
        sites.promote("a")
        names = sites.names()
        assert names.find() == "a"
        assert names.elsewhere() == ["b"]
        assert Catalog(sites.store, "a").tiers() == ["fast"]
