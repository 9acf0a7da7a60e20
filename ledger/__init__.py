"""The ledger decides and remembers: one transaction is the reservation and its event."""
