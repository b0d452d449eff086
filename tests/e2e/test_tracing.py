"""A server that traces: each request of a caller who traces is in the caller's trace, with all that happened to its images."""

from __future__ import annotations

from collections import Counter

import httpx
from otlp_receiver import receiving
from served import PATIENCE, SETTINGS, publish

from examples.launch import serving
from registry.stores.address import open_store

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_request_is_traced_from_queue_to_file(tmp_path):
    schedules = publish(open_store(str(tmp_path / "registry")))
    body = {"prompt": "nobody's business", "tier": "fast", "num_images": 2}
    with receiving() as receiver:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.address, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        settings = SETTINGS | {"FLEXI_REGISTRY": str(tmp_path / "registry")} | variables
        with serving(settings, tmp_path / "log", patience=PATIENCE) as address:
            reply = httpx.post(
                f"{address}/generate", json=body, headers={"traceparent": f"00-{TRACE}-{CALLER}-01"}, timeout=120
            )
            assert reply.status_code == 200, reply.text
        spans = receiver.spans  # sent at the latest when the server ends
    (request,) = [span for span in spans if span.name == "POST /generate"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, CALLER)
    images = [span for span in spans if span.name == "image"]
    assert [image.parent_span_id for image in images] == [request.span_id] * 2
    steps = {kind: count for kind, count in schedules["fast"].counts().items() if kind != "null"}
    for image in images:
        inside = Counter(span.name for span in spans if span.parent_span_id == image.span_id)
        assert inside == {"queue": 1, "encode": 1, "decode": 1, **steps}
    assert [span.parent_span_id for span in spans if span.name == "file"] == [request.span_id] * 2
    assert not [span for span in spans if "business" in str(span)]
