"""Compiled networks compute what plain ones do, and each kind of layer is compiled once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import policy_helpers
import pytest
import torch
from policy_helpers import act, chunk_noise, new_pi0, new_value, observation, training_batch
from torch._dynamo.utils import counters

from recap.policies import backbone
from recap.policies.checkpoint import Checkpoint
from recap.policies.compiled import Graphs, compiles, free_bytes, share_kept
from recap.policies.pi0 import paligemma
from recap.policies.value import modeling_value

GB = 1e9
NEW: dict[str, Callable[[], Checkpoint]] = {"pi0": new_pi0, "value": new_value}
BINS = {"return_bin": torch.tensor([0, 5, 20, 7])}


def gradients(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    policy = checkpoint.policy.train()
    extra = BINS if policy.name == "recap_value" else {}
    policy.forward(checkpoint.prepare({**training_batch(4), **extra}))[0].backward()
    return {name: parameter.grad for name, parameter in policy.named_parameters() if parameter.grad is not None}


def results(checkpoint: Checkpoint) -> torch.Tensor:
    """Actions from two noises, or values."""
    checkpoint.policy.eval()
    if checkpoint.policy.name == "recap_value":
        with torch.no_grad():
            return checkpoint.policy.value(checkpoint.prepare(observation(3)))
    found = []
    for beta in (1.0, 1.5):
        checkpoint.set_prompt(indicator=True, beta=beta)
        found.append(act(checkpoint, observation(3), chunk_noise(3)))
    return torch.stack(found)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("name", NEW)
def test_compiled_networks_compute_the_same(name: str, memory: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the attention of GPUs what plain ones do with that of processors."""
    plain, compiled = NEW[name](), NEW[name]()
    a, wanted = gradients(plain), results(plain)
    monkeypatch.setattr(paligemma, "attend", paligemma.by_products)
    compiled.policy.run_with(compiled=True, memory=memory)
    b = gradients(compiled)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(results(compiled), wanted, atol=1e-5, rtol=0)


def test_attention_on_gpus_is_that_on_processors() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, n, 12, 8, generator=generator) for n in (8, 2, 2))
    mask = torch.arange(12) < torch.tensor([12, 7])[:, None]
    found = []
    for attention in (paligemma.attend, paligemma.by_products):
        given = [one.clone().requires_grad_() for one in (queries, keys, values)]
        out = attention(*given, mask[:, None, None, :])
        found.append([out, *torch.autograd.grad(out.square().sum(), given)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions are captured as for compiling, and not compiled; the networks are deeper."""

    def capture(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, dynamic=False, backend="eager")

    for module in (paligemma, modeling_value):
        monkeypatch.setattr(module, "compile_for_shapes", capture)
    for size in ("VISION", "VLM", "EXPERT"):
        monkeypatch.setattr(policy_helpers, size, replace(getattr(policy_helpers, size), depth=3))
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize(("name", "kinds"), [("pi0", 4), ("value", 2)])
def test_each_kind_of_layer_is_compiled_once(name: str, kinds: int) -> None:
    trained = NEW[name]()
    trained.policy.run_with(compiled=True)
    gradients(trained)
    assert counters["stats"]["unique_graphs"] == kinds, "of vision, prefix, its last layer and expert; of vision, text"
    assert not counters["graph_break"]


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("name", NEW)
def test_joined_products_are_the_same(name: str) -> None:
    plain, joined = NEW[name](), NEW[name]()
    joined.policy.requires_grad_(requires_grad=False)
    before = {key: value.clone() for key, value in joined.policy.state_dict().items()}
    joined.policy.run_with(compiled=True)
    after = joined.policy.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before), "the weights stay what and where they are"
    layers = [module for module in joined.policy.modules() if hasattr(module, "joined")]
    assert len(layers) >= policy_helpers.VISION.depth
    assert all(layer.weight.data_ptr() == layer.joined[0].data_ptr() for layer in layers), "and are not held twice"
    torch.testing.assert_close(results(joined), results(plain), atol=1e-5, rtol=0)


def test_a_network_that_learns_is_not_joined() -> None:
    layers = [torch.nn.Linear(3, 2) for _ in range(2)]
    x = torch.randn(4, 3)
    apart = [layer(x) for layer in layers]
    assert all(torch.equal(a, b) for a, b in zip(backbone.products(x, *layers), apart, strict=True))
    policy = new_pi0().policy
    policy.run_with(compiled=True)
    assert not [module for module in policy.modules() if hasattr(module, "joined")]


def test_what_fits_is_kept() -> None:
    """Of full size, at batch 32: 25 GB of moments, 7 to 70 GB of activations."""

    def share(free: float, wanted: float | str = "auto") -> float:
        return share_kept(wanted, free * GB, 25 * GB, 7 * GB, 70 * GB)

    assert share(135) == 1.0, "139 GB keep everything"
    assert 0.5 < share(68) < 0.75, "80 GB keep some"
    assert share(20) == 0.0
    assert share(68) < share(75) < share(95) <= 0.9
    assert share(20, 0.4) == 0.4
    assert share_kept("auto", free_bytes("cpu"), 0.0, 1.0, 2.0) == 1.0


def test_a_processor_compiles_only_when_asked() -> None:
    assert not compiles("auto", "cpu")
    assert compiles(wanted=True, device="cpu")
    assert not compiles(wanted=False, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graphs_compute_what_their_function_does() -> None:
    graphs = Graphs(lambda inputs, factor: inputs[0].cumsum(1) * factor + inputs[1])
    for size, factor in ((2, 1.5), (2, 1.5), (3, 1.5), (2, 0.5)):
        inputs = [torch.randn(size, 8, device="cuda") for _ in range(2)]
        torch.testing.assert_close(graphs(inputs, factor), inputs[0].cumsum(1) * factor + inputs[1])
    assert len(graphs.recorded) == 3
