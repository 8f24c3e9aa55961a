"""Model: the Flax PinSage network and its losses; knows minibatches, not how they are sampled."""
