"""What is learned: model families, input pipelines, training and export."""
