"""What the numbers mean for a user, in plain sentences."""

from __future__ import annotations

from eva_local.evaluate.summary import FAR_APART, Standing, TaskSummary


def verdict(summary: TaskSummary) -> list[str]:
    """Return what follows for the ensemble that was asked for, and from other settings of it."""
    first = [advice(summary, standing) for standing in summary.ensembles[:1]]
    return [said for said in (*first, comparison(summary)) if said]


def warning(summary: TaskSummary) -> str:
    """Say so where members are too far apart for equal votes; empty where they are not."""
    if summary.gap <= FAR_APART:
        return ""
    worst = min(summary.members, key=lambda one: one.ahead.value if one.ahead else 0.0)
    return (
        f"the members differ by {_amount(summary.gap, summary)}, more than {FAR_APART:g}: an "
        f"equal vote for {worst.name} may cost more than it brings"
    )


def advice(summary: TaskSummary, standing: Standing) -> str:
    """Say whether to use an ensemble, its best member, or a gate. The interval decides."""
    ahead, best = standing.ahead, summary.best
    if ahead is None:
        return ""
    if len(standing.marks) < 2:
        amount = _amount(ahead.value, summary, "+")
        return f"One row cannot tell {standing.name} from {best} alone ({amount})."
    amount = _amount(abs(ahead.value), summary)
    interval = f"95% interval {ahead.interval()}"
    if ahead.low > 0:
        return f"Use {standing.name}: it is {amount} better than {best} alone ({interval})."
    if ahead.high < 0:
        return f"Use {best} alone: {standing.name} is {amount} worse ({interval})."
    told = (
        f"{len(standing.marks)} rows cannot tell {standing.name} from {best} alone "
        f"({_amount(ahead.value, summary, '+')}, {interval})"
    )
    spec, seconds = standing.contestant.spec, summary.standing(best).seconds
    if spec.pivot == best and spec.fusion.gate == 1:
        return (
            f"{told}: gate it (gate = 0.9), so that the others are asked only where {best} is "
            f"unsure, or use {best} alone."
        )
    if standing.seconds > seconds > 0:
        times = standing.seconds / seconds
        return f"{told}: use {best} alone, which is {times:.1f} times as fast."
    return f"{told}: more rows may tell."


def comparison(summary: TaskSummary) -> str:
    """Say which of the settings that were compared did best; empty where there was one."""
    if not summary.base:
        return ""
    first, *others = summary.ensembles
    leader = max(others, key=lambda one: one.change.value if one.change else 0.0)
    change = leader.change
    if change is None or change.value <= 0:
        return f"None of the settings compared with {first.name} does better."
    amount = _amount(change.value, summary, "+")
    told = f"{amount} against {first.name}, 95% interval {change.interval()}"
    rows = len(leader.marks)
    if change.low <= 0:
        return (
            f"Of the settings compared {leader.name} does best, but {rows} rows cannot tell it "
            f"from {first.name} ({told})."
        )
    luck = "; the best of many owes some of it to luck" if len(others) > 1 else ""
    return f"Of the settings compared {leader.name} does best ({told}{luck})."


def _amount(value: float, summary: TaskSummary, sign: str = "") -> str:
    return f"{value:{sign}.1f}%" if summary.step == "%" else f"{value:{sign}.1f} points"
