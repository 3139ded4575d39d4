"""Registers our policies with lerobot, which imports every module of `--env.discover_packages_path=recap.policies`."""

from recap.policies.registry import adapter_of, known
from recap.policies.value.config import ValueConfig

for _keys in (*known().values(), ValueConfig):
    adapter_of(_keys)
