"""The two roles that a network has."""

from __future__ import annotations

from enum import Enum


class PolicyKind(Enum):
    pi0 = "pi0"
    value = "value"
