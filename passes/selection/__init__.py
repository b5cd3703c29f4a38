"""Selection passes: from scores and a budget to a plan."""
