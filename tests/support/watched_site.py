"""A publisher and servers that watch what he publishes, on a store that fails on demand."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from memory_store import MemoryStore

from registry.catalog import Catalog
from registry.schedule import Schedule, Segment
from registry.signing import SigningKey, TrustedKeys
from server.tiers.active import ActiveSchedules
from server.tiers.last_good import LastGood
from server.tiers.watch import Watch

PRIVATE = Ed25519PrivateKey.generate()
KEY = SigningKey(PRIVATE)
TRUSTED = TrustedKeys({KEY.id: PRIVATE.public_key()})


class Watched(MemoryStore):
    """Fails on demand, can be written behind the catalog's back, and notes what is asked of it."""

    def __init__(self):
        super().__init__()
        self.down, self.asked = None, []

    def get(self, key):
        self._note("get", key)
        return super().get(key)

    def get_if_changed(self, key, etag):
        self._note("get_if_changed", key)
        stored = super().get(key)
        return None if stored.etag == etag else stored

    def list(self, prefix):
        self._note("list", prefix)
        return super().list(prefix)

    def _note(self, *what):
        if self.down:
            raise self.down
        self.asked.append(what)

    def overwrite(self, key, data):
        self._objects[key] = data

    def remove(self, key):
        del self._objects[key]


class Site:
    """A publisher, and servers that watch what he publishes."""

    def __init__(self, store, model, state):
        self.store, self.model, self.state = store, model, state
        self.publisher = Catalog(store, model.ref.name, author="test")

    def server(self, trusted=None, registry="memory"):
        """Schedules and watch of a server that starts now."""
        catalog = Catalog(self.store, self.model.ref.name, trusted=trusted)
        schedules = ActiveSchedules(lambda: catalog, self.model, teacher_steps=4)
        last_good = LastGood(self.state, registry, self.model.ref.name, trusted)
        return schedules, Watch(schedules, lambda: catalog, last_good)

    def schedule(self, *branches, **fields):
        """One segment for each branch; 0 for none."""
        segments = tuple(Segment(partial=(1,), branch=b) if b else Segment() for b in branches)
        return Schedule(model=self.model.ref, solver=self.model.solver("ddim", 4), segments=segments).model_copy(update=fields)

    def promote(self, tier, schedule, sign=False):
        self.publisher.publish(schedule)
        if sign:
            self.publisher.sign(schedule, KEY)
        self.publisher.promote(tier, schedule.digest)
        return schedule

    def started(self, trusted=None):
        """The schedules of a server that has just read the registry."""
        schedules, watch = self.server(trusted)
        assert watch.refresh()
        return schedules

    def key(self, rest):
        return f"{self.model.ref.name}/{rest}"
