"""How channels depend on each other: labels that follow them through operators, and the groups that come of it."""
