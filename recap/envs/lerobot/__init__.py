"""Any environment of lerobot's registry."""
