"""The demo: one cluster in two network zones, from the first ADD to the audit, on this machine."""
