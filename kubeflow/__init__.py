"""The same DAG on a Kubeflow Pipelines cluster (not built yet)."""
