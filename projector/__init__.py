"""Out: facts leave the journal as projections, and answer what people ask."""
