"""π0.5: lerobot's own class."""
