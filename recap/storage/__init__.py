"""The run directory as a contract: manifests, locks, readers, and no way out of it."""
