"""π0 and the value function as lerobot policies, and the one place where the advantage indicator becomes text."""
