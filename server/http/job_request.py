"""What brings a job: a request of one of the two routes that make images, wrapped."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from server.http.openai import ImagesRequest
from server.jobs.record import Endpoint
from server.request_body import NOTHING, OFF, RequestBody
from server.webhooks.addresses import MAX_URL

IMAGES: Endpoint = "/v1/images/generations"
REF = "#/components/schemas/"
WITHOUT_STREAM: dict[str, Any] = {"properties": {"stream": OFF}}
WITHOUT_IMAGE: dict[str, Any] = {"properties": dict.fromkeys(("image", "mask", "strength"), NOTHING)}
FITTING: dict[str, Any] = {  # JSON Schema: whose body it is. Only a whole document has what it refers to
    "if": {"properties": {"endpoint": {"const": IMAGES}}, "required": ["endpoint"]},
    "then": {"properties": {"body": {"allOf": [{"$ref": REF + ImagesRequest.__name__}, WITHOUT_STREAM]}}},
    "else": {"properties": {"body": {"allOf": [{"$ref": f"{REF}Generate"}, WITHOUT_IMAGE]}}},
}
URL = (
    r"^https://[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63}){0,3}\.[a-z]{2,10}(/[!-~]{0,100})?$"  # of those that pass: it is for documents
)


class JobRequest(RequestBody):
    """A request of one of the two routes that make images, to be served when there is nothing more urgent."""

    endpoint: Annotated[Endpoint, Field(description="Whose `body` it is.")] = "/generate"
    body: Annotated[
        dict[str, Any], Field(description="What that route takes, without `stream`; its deadline_ms runs from now.")
    ]
    webhook: Annotated[
        str | None,
        Field(
            max_length=MAX_URL,
            description="An https URL at a public address that is called when the job has ended, signed.",
            json_schema_extra={"pattern": URL},
        ),
    ] = None
