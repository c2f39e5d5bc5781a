"""The same job on a cluster: compile for Kubeflow Pipelines, submit, image, manifests."""
