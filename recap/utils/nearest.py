"""The valid name that a mistyped one was probably meant to be."""

from __future__ import annotations

import difflib


def nearest(wrong: str, valid: list[str]) -> str:
    """`Nearest: a, b` for a mistyped key or choice."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, wrong.lower(), candidate.lower()).ratio()
        (*nodes, word), (*candidate_nodes, candidate_word) = wrong.lower().split("."), candidate.lower().split(".")
        last = difflib.SequenceMatcher(None, word, candidate_word).ratio()
        if len(word) > 1 and word == "".join(part[0] for part in candidate_word.split("_") if part):
            last = 1.0  # lr is learning_rate
        inside = bool(nodes) and nodes == candidate_nodes[: len(nodes)]
        return max(whole, last) + 0.3 * inside - 0.02 * len(candidate_nodes)

    ranked = sorted(valid, key=likeness, reverse=True)
    best = [v for v in ranked[:3] if likeness(v) > likeness(ranked[0]) - 0.03]
    return f"Nearest: {', '.join(best)}"
