"""What a schedule's figures are, where its document says them and where it does not."""

from __future__ import annotations

from schedule_strategies import schedule

from registry.schedule import Cost, teacher
from registry.site.reader import figures_of


def test_a_teacher_costs_what_a_teacher_costs_though_no_document_says_it():
    partial = schedule()
    assert figures_of(teacher(partial.model, partial.solver)).relative_cost == 1
    assert figures_of(partial).relative_cost is None
    measured = teacher(partial.model, partial.solver).model_copy(update={"cost": Cost(macs=3, rows=1, relative=1.5)})
    assert figures_of(measured).relative_cost == 1.5
