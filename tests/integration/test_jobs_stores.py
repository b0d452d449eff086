"""Jobs and kept files on the real stores: a folder, and a bucket of a real S3 server."""

from __future__ import annotations

import asyncio

import pytest
from job_workers import Worker, takes_the_rest

from registry.models import published_models
from registry.stores.address import open_store
from server.jobs.job_store import ENDED, IDEMPOTENT, OPEN
from server.jobs.leases import HOLDERS
from server.jobs.leftovers import Leftovers
from server.storage.async_store import AsyncStore
from server.storage.kept_files import FOLDER
from server.storage.sweeper import GRACE, Sweeper


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return open_store(str(tmp_path / "registry"))
    server = request.getfixturevalue("s3_server")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return open_store(f"s3://{server.bucket}/job-tests")


def test_jobs_are_taken_over_end_once_and_are_swept(store):
    """A worker begins three jobs and dies; two others do them, and at last everything has had its time."""

    async def go():
        first, *others = Worker(store), *(takes_the_rest(Worker(store)) for _ in range(2))
        first.go.clear()
        kept = [await first.bring(f"p{i}", idempotency=(f"k{i}", b"x")) for i in range(3)]
        assert (await others[0].bring("p0", idempotency=("k0", b"x"))).id == kept[0].id
        await first.turn()
        while len(first.asked) < 3:
            await asyncio.sleep(0.01)
        await first.die()
        while list(store.list(OPEN)):
            await asyncio.gather(*(other.turn() for other in others))
            await asyncio.sleep(0.01)
        ends = [await others[1].jobs.find("anonymous", job.id) for job in kept]
        assert [(end.state, end.job.attempts) for end in ends] == [("succeeded", 2)] * 3
        asked = sorted(request.prompt for other in others for request in other.asked)
        assert asked == ["p0", "p1", "p2"], "each by one of the two"
        for i, end in enumerate(ends):
            assert (await others[0].jobs._run._files.read(end.files[0])).data == f"p{i}".encode()
        assert published_models(store) == []
        late = ends[0].job.until + GRACE + 1
        own = AsyncStore(lambda: store)
        sweepers = [Sweeper(own, [FOLDER, OPEN, ENDED], [Leftovers(own, lambda: late).sweep], lambda: late) for _ in range(2)]
        await asyncio.gather(*(sweeper.sweep() for sweeper in sweepers))
        assert [*store.list(FOLDER), *store.list(ENDED), *store.list(IDEMPOTENT)] == []
        for other in others:
            await other.runner.close()
        await sweepers[0].sweep()
        await sweepers[0].sweep()
        assert list(store.list(HOLDERS)) == []

    asyncio.run(go())
