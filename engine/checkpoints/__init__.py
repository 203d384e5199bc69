"""What a run keeps of a model: checkpoints, and the weights that go into and out of them."""
