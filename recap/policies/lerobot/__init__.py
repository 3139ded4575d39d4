"""lerobot's own policies, as they are: what those have in common that make actions from noise and read an instruction.

A policy of this kind is a folder beside this one: docs/policies.md.
"""
