"""One line of JSON per event on standard output. Prompts never get into it."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from pydantic import ValidationError
from typing_extensions import override

from server.telemetry import served

ROOTS = ("engine", "server")  # loggers are named after their modules


class JsonLines(logging.Formatter):
    """time, level, the worker's process, event, its model, and what the caller gave as `extra={"fields": {...}}`."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON, without its newline."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "pid": record.process,
            "event": record.getMessage(),
            **({"model": model} if (model := served.model()) else {}),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure() -> None:
    """Send the log of the server and of its engine to standard output; what BentoML and libraries log stays theirs."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    for root in ROOTS:
        logger = logging.getLogger(root)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    logging.getLogger("bentoml._internal.server.http_app").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """BentoML logs a traceback for each invalid request, so that clients could fill our disk; the edge says it in a line."""
    return not (record.exc_info and isinstance(record.exc_info[1], ValidationError))
