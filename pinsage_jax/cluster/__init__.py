"""Apache Spark: the stages of inference, graph tables and walks where one machine is too small."""
