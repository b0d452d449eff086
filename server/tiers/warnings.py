"""What an operator should know of the tiers in force: those that the registry has and this server does not serve, and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from engine.notice import Notice
from registry.tiers import REFERENCE
from server.tiers.active import ActiveSchedules

TEACHER = f"{REFERENCE}, the unaccelerated teacher"
SHOWN = 3  # reasons in one message


def tier_warnings(schedules: ActiveSchedules, default_tier: str) -> list[Notice]:
    """Nothing where every tier of the registry is served, `default_tier` among them.

    Codes: `no_tiers` (the registry has none of this model but maybe `reference`), `no_tier_served` (it has some, and all were
    refused), `tiers_not_served` (some were), `default_tier_not_served`.
    """
    found = list[Notice]()
    model, served, refused = schedules.model_name, schedules.served(), schedules.refused
    if not (served or refused):
        but = f" but {REFERENCE}" * bool(schedules.tier(REFERENCE).version)
        message = f"the registry holds no tiers of {model}{but}: only {TEACHER}, is served{_elsewhere(schedules)}"
        found.append(Notice("no_tiers", message))
    elif not served:
        message = f"none of the registry's tiers of {model} is served, only {TEACHER}: "
        found.append(Notice("no_tier_served", message + _reasons(refused) + _elsewhere(schedules)))
    elif refused:
        message = f"not served of the registry's tiers of {model}: "
        found.append(Notice("tiers_not_served", message + _reasons(refused)))
    if schedules.default(default_tier) != default_tier:
        message = f"the default tier {default_tier} is not served: requests that name no tier get {TEACHER}"
        found.append(Notice("default_tier_not_served", message))
    return found


def in_one_line(warnings: Sequence[Notice]) -> str:
    """For a log."""
    return "; ".join(warning.message for warning in warnings)


def _reasons(refused: Mapping[str, str]) -> str:
    """Tiers by why they were refused, in one line."""
    tiers = defaultdict(list)
    for tier, why in sorted(refused.items()):
        tiers[why].append(tier)
    said = [f"{', '.join(names)}: {why}" for why, names in tiers.items()]
    return "; ".join(said[:SHOWN]) + f"; and {len(said) - SHOWN} more reasons" * (len(said) > SHOWN)


def _elsewhere(schedules: ActiveSchedules) -> str:
    """Where the registry has these weights under other names."""
    if not schedules.elsewhere:
        return ""
    names = " and ".join(schedules.elsewhere)
    return f"; it has tiers for these weights as {names}: set FLEXI_MODEL_NAME={schedules.elsewhere[0]}"
