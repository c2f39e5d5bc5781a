"""Making a trained model small: a recipe's steps, one file each. Nothing here knows of TFX."""
