"""What the numbers mean for a user, in plain sentences."""

from __future__ import annotations

from eva_local.evaluate.summary import FAR_APART, Standing, TaskSummary

# Where some member is right so much more often than the best, better weights may find it.
_WORTH_TUNING = 10.0


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
        return (
            f"Use {best} alone: {standing.name} is {amount} worse ({interval})."
            f"{_way_out(summary, standing)}"
        )
    told = (
        f"{len(standing.marks)} rows cannot tell {standing.name} from {best} alone "
        f"({_amount(ahead.value, summary, '+')}, {interval})"
    )
    rest = "more rows may tell"
    if _leads(summary, standing):
        rest = (
            f"gate it (gate = 0.9), so that the others are asked only where {best} is unsure, "
            f"or use {best} alone"
        )
    elif (times := _times(summary, standing)) > 1:
        rest = f"use {best} alone, which is {times:.1f} times as fast"
    return f"{told}: {rest}."


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


def _way_out(summary: TaskSummary, standing: Standing) -> str:
    """Say how the ensemble might be mended."""
    score = summary.standing(summary.best).score.value
    apart = 0.0 if summary.oracle is None else abs(summary.oracle - score)
    if summary.step == "points" and apart > _WORTH_TUNING:
        return (
            f" Picking the best member row by row would score {apart:.1f} points more than "
            f"{summary.best}: --tune looks for settings that come nearer."
        )
    if _leads(summary, standing):
        return f" Or gate it (gate = 0.9), so that {summary.best} decides alone where it is sure."
    return ""


def _leads(summary: TaskSummary, standing: Standing) -> bool:
    """Return whether the best member is the pivot, which a gate would let decide alone."""
    spec = standing.contestant.spec
    return spec.pivot == summary.best and spec.fusion.gate == 1


def _times(summary: TaskSummary, standing: Standing) -> float:
    seconds = summary.standing(summary.best).seconds
    return standing.seconds / seconds if seconds else 0.0
