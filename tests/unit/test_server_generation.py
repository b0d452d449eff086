"""One request: waiting ends when it is done, when the client leaves, or when time is over; the answer adds up."""

from __future__ import annotations

import asyncio
import base64
import io
from collections import Counter

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from server_model import small_model

from registry.errors import InvalidInput, NotFound, Overloaded
from server.admission import Admission
from server.api import GenerateRequest
from server.errors import ClientGone, DeadlineExceeded
from server.generation import Generation, while_wanted
from server.order import Picture
from server.schedules import Schedules


class Settings:
    max_images, request_seconds, default_tier, default_guidance = 3, 60.0, "reference", 3.0


class Renderer:
    """Gives grey pictures, whose cost it makes up."""

    def __init__(self):
        self.orders = []

    async def render(self, orders):
        self.orders = orders
        return [Picture(torch.full((3, 8, 8), 0.5), 10, Counter(full=4), 0.001 * i, 0.5) for i, _ in enumerate(orders, 1)]


@pytest.fixture
def renderer():
    return Renderer()


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture
def generation(model, renderer):
    return Generation(model.ref, Schedules(lambda: None, model, 4), renderer, Settings())


async def never():
    await asyncio.Event().wait()


async def at_once():
    return None


def answer(generation, **fields):
    return asyncio.run(generation.answer(GenerateRequest(prompt="ein Herz ♥", **fields), "id-1", never()))


def test_the_answer(generation, renderer):
    response = answer(generation, num_images=3, seed=5)
    assert [order.seed for order in renderer.orders] == [5, 6, 7]
    assert {(order.guidance, order.tier) for order in renderer.orders} == {(3.0, "reference")}
    assert (response.macs, response.macs_per_image, response.queue_ms, response.denoise_ms) == (30, 10, 3.0, 500.0)
    assert response.steps.model_dump() == {"full": 4, "partial": 0, "null": 0}
    texts = [Image.open(io.BytesIO(base64.b64decode(data))).text for data in response.images]
    assert [text["seed"] for text in texts] == ["5", "6", "7"]
    assert texts[0]["prompt"] == "ein Herz ♥"
    assert texts[0]["schedule"] == response.schedule


def test_a_seed_is_drawn_and_told(generation, renderer):
    response = answer(generation)
    assert response.seed == renderer.orders[0].seed


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [({"num_images": 4}, InvalidInput, "num_images"), ({"tier": "nope"}, NotFound, "tier")],
)
def test_refusals(generation, fields, error, param):
    with pytest.raises(error) as refused:
        answer(generation, **fields)
    assert refused.value.param == param


@pytest.mark.parametrize(("gone", "seconds", "error"), [(at_once, 60, ClientGone), (never, 0.01, DeadlineExceeded)])
def test_work_that_nobody_wants_is_cancelled(gone, seconds, error):
    cancelled = []

    async def work():
        try:
            await never()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def go():
        with pytest.raises(error):
            await while_wanted(work(), gone(), seconds)
        await asyncio.sleep(0)

    asyncio.run(go())
    assert cancelled


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": "x" * 1001},
        {"tier": "fast", "schedule": "12345678"},
        {"schedule": "fast"},
        {"seed": 2**63},
        {"seed": 2**63 - 1, "num_images": 2},
        {"seed": True},
        {"guidance_scale": float("nan")},
        {"guidance_scale": 0.99},
        {"num_images": 1.0},
        {"unknown": 1},
    ],
)
def test_bounds(fields):
    with pytest.raises(ValidationError) as refused:
        GenerateRequest(**{"prompt": "my secret"} | fields)
    assert "my secret" not in str(refused.value)


def test_the_waiting_time_is_the_backlog_at_the_measured_pace():
    admission = Admission(max_rows=2)
    admission.admit(0, 2, lambda: 0)
    for _ in range(3):
        admission.measured(macs=100, seconds=2.0)
    with pytest.raises(Overloaded) as refused:
        admission.admit(1, 2, lambda: 1000)
    assert refused.value.retry_after == pytest.approx(20)
