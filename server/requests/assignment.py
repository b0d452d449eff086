"""What an experiment makes of a request, as far as requests need to know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from registry.experiments.declaration import Experiment
from server.requests.covariates import Covariates

if TYPE_CHECKING:  # the analysis of experiments reads `Enrolment` and needs no torch
    from server.tiers.active import ActiveSchedule

Enrolment = Literal["enrolled", "not_in_share", "no_unit", "bypass"]


@dataclass(frozen=True)
class Assignment:
    """What an experiment means for one request. `arm`, `unit` (hashed) and `covariates` are there if it is enrolled.

    `fallback`: the arm's schedule could not be loaded here, and the tier's own serves.
    """

    experiment: Experiment
    enrolment: Enrolment
    arm: str | None = None
    unit: str | None = None
    fallback: bool = False
    covariates: Covariates | None = None


class Assigner(Protocol):
    """What splits a tier's traffic between schedules."""

    def assign(self, entry: ActiveSchedule, unit: str | None, request_id: str) -> tuple[ActiveSchedule, Assignment | None]:
        """The schedule that serves a request of this tier's traffic (its arm's or the tier's own), and its assignment.

        unit: whom the request comes from, if it says so.
        """

    def bypassed(self, digest: str) -> Assignment | None:
        """For a request that names its schedule itself: the experiment that has it as an arm, if any."""
