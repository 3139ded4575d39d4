"""The environment of docs/extending.md."""
