"""The schema's history. `ledger.schema` runs it; a released revision is never edited."""
