"""The stages of inference on Apache Spark."""
