"""The two roles that a network has: the policy acts, the value function judges."""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    policy = "policy"
    value = "value"
