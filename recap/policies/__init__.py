"""π0 and the value function as lerobot policies, and the one place where the advantage indicator becomes text."""

from recap.utils.later import later

# For π0 and the value function their __init__ would import every policy, Hugging Face's data sets, pandas and aiohttp.
later("lerobot.policies", "lerobot.policies.evo1", "lerobot.policies.groot")
later("torchvision.datasets", "torchvision.models", "torchvision.ops")  # lerobot wants only its transforms
