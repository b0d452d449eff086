"""A finished image's work beside what its schedule prescribes, so that Prometheus can hold one to the other."""

from __future__ import annotations

from server import metrics
from server.order import Ticket


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
