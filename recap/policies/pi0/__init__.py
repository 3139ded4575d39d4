"""π0: configuration, network, batches."""
