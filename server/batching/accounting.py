"""The work of waves, and a finished image's beside what its schedule prescribes: Prometheus can hold one to the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from engine.program import Need
from server.batching.image import Ticket
from server.telemetry import metrics


def spend(need: Need, tickets: Collection[Ticket]) -> list[int]:
    """Count the steps and MACs of a launched wave: they are spent whatever becomes of it. Returns each ticket's MACs."""
    spent, steps, each = Counter[tuple[str, str]](), Counter[tuple[str, str]](), list[int]()
    for ticket in tickets:
        macs, null = ticket.ran(need)
        each.append(macs)
        spent[ticket.order.tier, ticket.order.arm] += macs
        steps[need.kind, ticket.order.tier] += 1
        steps["null", ticket.order.tier] += null
    for (tier, arm), macs in spent.items():
        metrics.macs_total.labels(tier, arm, need.kind).inc(macs)
    for labels, count in steps.items():
        metrics.steps_total.labels(*labels).inc(count)
    return each


def balance(ticket: Ticket) -> None:
    """Count steps and MACs twice: as the waves ran them, and as the schedule's document says.

    A document without a cost (the teacher made up at start, say) is held to nothing: its MACs count as they ran.
    """
    order, schedule = ticket.order, ticket.order.program.schedule
    for kind, steps in schedule.counts().items():
        metrics.planned_steps_total.labels(kind, order.tier).inc(steps)
        metrics.finished_steps_total.labels(kind, order.tier).inc(ticket.steps[kind])
    cost = schedule.cost
    metrics.teacher_macs_total.labels(order.tier, order.arm).inc(order.teacher_macs)
    metrics.planned_macs_total.labels(order.tier).inc(order.unet_rows * cost.macs / cost.rows if cost else ticket.macs)
    metrics.image_macs.labels(order.tier).observe(ticket.macs)
