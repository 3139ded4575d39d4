"""The value function: configuration, network, batches, which episodes it leaves out."""
