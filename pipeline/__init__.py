"""What runs: the configuration, the DAG, the local runners and the command line."""
