"""What trains: penalties on the weights, the state of an optimiser carried over a cut, and a training loop with its data."""
