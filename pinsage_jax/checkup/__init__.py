"""The doctor: what is odd about the inputs, and what a run of them will cost."""
