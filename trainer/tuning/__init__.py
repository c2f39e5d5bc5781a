"""The search for the settings that train best: keras-tuner asks, the Trainer's code answers."""
