"""A policy from outside the package: two layers on the state and the indicator. docs/extending.md explains it."""
