"""In: facts come from the container runtime and from the cluster, and become requests of the ledger."""
