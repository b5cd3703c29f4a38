"""Solvers of the group knapsack: exactly one width for every group, the most value within the budgets. Arrays only."""
