"""Plans: which slices of which tensors stay."""
