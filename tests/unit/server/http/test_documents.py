"""What the OpenAPI document says of each error status is true of the errors that have it."""

from __future__ import annotations

import pytest

from registry.errors import FlexiError, NeedsApproval, Overloaded, StoreUnavailable, Untrusted
from server.errors import Forbidden, MarkingFailed, QuotaExceeded, Stopping
from server.http.documents import WHY


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (MarkingFailed, "marked"),
        (NeedsApproval, "approve"),
        (Untrusted, "signed"),
        (Forbidden, "role"),
        (Overloaded, "queue"),
        (QuotaExceeded, "quota"),
        (StoreUnavailable, "registry"),
        (Stopping, "stopping"),
    ],
)
def test_an_error_is_described_where_its_status_is_and_nowhere_else(error: type[FlexiError], word: str) -> None:
    assert [status for status, why in WHY.items() if word in why] == [error.status]
