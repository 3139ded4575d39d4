"""SmolVLA: lerobot's own class."""
