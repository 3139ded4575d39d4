"""The one training loop; it knows no policy, no cluster and no W&B."""
