"""From pictures in folders, idx files or a CSV to TFX's Examples, encoded as they are.

Nothing is imported here: the pre-flight check uses `listing` and `picture`, and must not wait for
TFX. The component itself is `image_example_gen.component.ImageExampleGen`.
"""
