"""Which rows are taken, and which split each falls to.

Nothing is imported here: the pre-flight check uses `rule`, and must not wait for TFX. What TFX's
own split by a hash cannot do, `executor` does for each format.
"""
