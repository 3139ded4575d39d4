"""The sections of the page that say what happened: the verdict, advice, rates, pairs, tasks."""

from __future__ import annotations

from html import escape
from typing import Any

from recap.report.advice import pair_of
from recap.report.html import figures
from recap.report.html.page import Page, card, row, section, table
from recap.report.verdict import EXPERIENCE_ARMS, alarm, verdict
from recap.report.words import (
    NBSP,
    arm_name,
    evaluated,
    interval,
    number,
    p_number,
    p_text,
    percent,
    points,
    policy_name,
    positive_shares,
    sentence_case,
    side_name,
)

PAIR_NAMES = {"both": "both succeed", "fixed": "fixed", "broke": "broke", "neither": "both fail"}


def header(summary: dict[str, Any]) -> str:
    """The alarm, if there is one, and the verdict."""
    seed = "" if summary["seed"] is None else f" · seed {summary['seed']}"
    said = alarm(summary)
    first = f'<p class="alarm">{escape(said)}</p>\n' if said else ""
    sentences = "\n".join(f"<p>{escape(sentence)}</p>" for sentence in verdict(summary))
    return (
        f'<header>\n<p class="eyebrow">RECAP run{seed}</p>\n<h1>{escape(summary["name"])}</h1>\n{first}'
        f'<div class="lead">\n{sentences}\n</div>\n</header>'
    )


def advice(summary: dict[str, Any]) -> str:
    """What the numbers point at, with the overrides to try; "" where there is nothing to say."""
    if not summary["advice"]:
        return ""
    items = "".join(
        f"<li><b>{escape(finding['problem'])}</b><span>{escape(finding['evidence'])}</span>"
        + "".join(f"<code>{escape(override)}</code>" for override in finding["try"])
        + "</li>"
        for finding in summary["advice"]
    )
    title = "<h3>What the numbers point at, and what to try</h3>"
    return card(title, f'<ol class="advice">{items}</ol>', kind="warn")


def tiles(summary: dict[str, Any]) -> str:
    """The four numbers to remember; "" before the first evaluation."""
    policies = evaluated(summary)
    if not policies:
        return ""
    first, last = policies[0]["eval"], policies[-1]["eval"]
    name = policy_name(policies[-1]["iteration"])

    def change(key: str, show: Any) -> str:
        return show(last[key]) if first is last else f"{show(first[key]).removesuffix(f'{NBSP}%')} → {show(last[key])}"

    shown = [
        ("Success", change("success_rate", percent), f"{last['successes']} of {last['episodes']} with {name}"),
        ("Steps to success", change("mean_steps_to_success", lambda v: number(v, 1)), "mean over successes"),
        ("Successes per hour", change("successes_per_hour", number), "of robot time"),
    ]
    controls = {control["arm"]: control["eval"] for control in summary["controls"] if control["eval"]}
    arm = next((arm for arm in EXPERIENCE_ARMS if arm in controls), None)
    paired = pair_of(summary, arm, policies[-1]["iteration"]) if arm else None
    if arm and paired:
        lead = last["success_rate"] - controls[arm]["success_rate"]
        sign = "" if round(100 * lead) == 0 else "+" if lead > 0 else "−"
        shown.append(("Lead over the control", sign + points(lead), f"{arm_name(arm)}, {p_text(paired['mcnemar_p'])}"))
    else:
        shown.append(("Lead over a control", "–", "no such control was run"))
    inside = "\n".join(
        f'<div class="tile"><div class="name">{name}</div><div class="big">{escape(big)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
        for name, big, note in shown
    )
    return f'<div class="tiles">\n{inside}\n</div>'


def success(page: Page, summary: dict[str, Any]) -> str:
    """Rates by iteration and of all arms, drawn and as numbers; "" before the first evaluation."""
    policies = evaluated(summary)
    if not policies:
        return ""
    curve = page.figure(
        "success", figures.success_curve({summary["name"]: summary}), "Success by iteration; the table has the numbers"
    )
    arms = page.figure("arms", figures.arms(summary), "Success of all arms; the table has the numbers")
    drawn = [card("<h3>By iteration</h3>", curve), card("<h3>Beside the control arms</h3>", arms) if arms else ""]
    return section(
        "Success rate",
        "Held-out initial states, the same for every policy. Bars are 95 % Wilson intervals; the pairs below compare "
        "more sharply than overlapping bars do.",
        f'<div class="columns">{"".join(drawn)}</div>' if arms else drawn[0],
        card(_rates(summary, policies)),
    )


def _rates(summary: dict[str, Any], policies: list[dict[str, Any]]) -> str:
    shares = positive_shares(summary)
    best = summary["best"]["iteration"]

    def cells(name: str, mark: str, evaluation: dict[str, Any], share: str, data: str) -> str:
        return row(
            [
                f'<span class="key {mark}"></span>{name}',
                f'<td class="wide">{evaluation["successes"]}/{evaluation["episodes"]}</td>',
                f'<td class="strong whole">{percent(evaluation["success_rate"])}</td>',
                f'<td class="whole">{interval(evaluation["ci95"])}</td>',
                number(evaluation["mean_steps_to_success"], 1),
                number(evaluation["successes_per_hour"]),
                f'<td class="wide">{share}</td>',
                f'<td class="wide">{data}</td>',
            ]
        )

    rows = [
        cells(
            escape(sentence_case(policy_name(p["iteration"])))
            + (' <span class="tag">best</span>' if p["iteration"] == best and len(policies) > 1 else ""),
            "policy",
            p["eval"],
            percent(shares.get(p["iteration"])),
            f"{number(p['data']['demonstrations'])} + {p['data']['rollouts']}",
        )
        for p in policies
    ]
    controls = [control for control in summary["controls"] if control["eval"]]
    if controls:
        title = f"Control arms beside {policy_name(policies[-1]['iteration'])}"
        rows.append(f'<tr class="group"><td colspan="8">{title}</td></tr>')
        rows += [cells(escape(sentence_case(arm_name(c["arm"]))), "control", c["eval"], "", "") for c in controls]
    head = ["policy", '<th class="wide">success</th>', "rate", "95 % Wilson", "steps", "per hour"]
    return table(
        [*head, '<th class="wide">positive share</th>', '<th class="wide">demos + rollouts</th>'], rows, beside=4
    )


def pairs(summary: dict[str, Any]) -> str:
    """The paired outcomes of every comparison; "" where nothing was compared."""
    evaluations = {p["iteration"]: p["eval"] for p in evaluated(summary)}
    rows = []
    for pair in summary["comparisons"]:
        after = evaluations[pair["after"]]
        counts = _counts(pair, after["successes"], after["episodes"])
        rows.append(
            row(
                [
                    f"{escape(sentence_case(side_name(pair['before'])))} → {escape(side_name(pair['after']))}",
                    f'<td class="wide">{_bar(counts)}</td>',
                    f'<td class="strong">{pair["fixed"]}</td>',
                    f'<td class="strong">{pair["broke"]}</td>',
                    f"{counts['both']}",
                    f"{counts['neither']}",
                    f'<td class="whole">{p_number(pair["mcnemar_p"])}</td>',
                ]
            )
        )
    if not rows:
        return ""
    legend = "".join(f'<span><i class="{key}"></i>{name}</span>' for key, name in PAIR_NAMES.items())
    head = ["before → after", '<th class="wide"></th>', "fixed", "broke", "both succeed", "both fail", "p"]
    return section(
        "Pair by pair",
        "Every initial state was met by both policies. Fixed: failed before, succeeded after. Broke: the other way "
        "round. p is McNemar’s exact test of the two.",
        card(table(head, rows, beside=5), f'<div class="legend wide">{legend}</div>'),
    )


def _counts(pair: dict[str, Any], successes: int, episodes: int) -> dict[str, int]:
    both = successes - pair["fixed"]
    fixed, broke = pair["fixed"], pair["broke"]
    return {"both": both, "fixed": fixed, "broke": broke, "neither": episodes - both - fixed - broke}


def _bar(counts: dict[str, int]) -> str:
    parts = "".join(f'<i class="{name}" style="flex:{count}"></i>' for name, count in counts.items() if count)
    return f'<div class="pairs">{parts}</div>'


def tasks(summary: dict[str, Any]) -> str:
    """Rates by task and what became of the tasks without rollouts; "" for a single task."""
    policies = evaluated(summary)
    names = sorted({task for policy in policies for task in policy["eval"]["per_task"]})
    if len(names) < 2:
        return ""
    lost = summary["forgetting"]
    alone = set(lost["tasks"]) if lost else set()
    rows = []
    for task in sorted(names, key=lambda name: (name in alone, name)):
        mark = ' <span class="tag">no rollouts</span>' if task in alone else ""
        counts = [policy["eval"]["per_task"].get(task) for policy in policies]
        rows.append(
            row(
                [
                    escape(task) + mark,
                    *(
                        "–"
                        if c is None
                        else f"{percent(c['successes'] / c['episodes'])} "
                        f'<span class="sub">{c["successes"]}/{c["episodes"]}</span>'
                        for c in counts
                    ),
                ]
            )
        )
    head = ["task", *(policy_name(policy["iteration"]) for policy in policies)]
    return section(
        "By task",
        "The same evaluations, one instruction at a time.",
        card(table(head, rows), _forgetting(lost) if lost else ""),
    )


def _forgetting(lost: dict[str, Any]) -> str:
    count = len(lost["tasks"])
    what = "task" if count == 1 else f"{count} tasks"
    if lost["mcnemar_p"] < 0.05:
        said = "forgotten" if lost["broke"] > lost["fixed"] else "not forgotten, but better than before"
    else:
        said = "not measurably forgotten"
    return (
        f'<p class="note">The {what} without rollouts: {said}. From {policy_name(lost["before"])} to '
        f"{policy_name(lost['after'])}, {lost['fixed']} of {lost['episodes']} initial states were fixed and "
        f"{lost['broke']} broke ({p_text(lost['mcnemar_p'])}).</p>"
    )
