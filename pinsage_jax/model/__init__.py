"""Model: the Flax PinSage network and its losses, on minibatches however they are sampled."""
