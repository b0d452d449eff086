"""What schemathesis cannot read in /docs.json: JSON Schema has no words for brackets that fit together.

tests/e2e/test_fuzz.py names this file in the environment. A request whose prompts weigh words gets prompts without brackets, so
that being allowed still means being answered; what brackets that do not fit come to is tested where they are read.
"""

from __future__ import annotations

from typing import Any

import schemathesis

BRACKETS = str.maketrans("()[]", "....")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if not isinstance(body, dict) or body.get("prompt_syntax") != "webui":
        return body
    texts = {field: body[field] for field in ("prompt", "negative_prompt") if isinstance(body.get(field), str)}
    return body | {field: text.translate(BRACKETS) for field, text in texts.items()}
