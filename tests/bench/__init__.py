"""Measurements of the pipeline, each against what a user would write instead, interleaved in the same run.

`./run bench` prints one table. Absolute figures move with the machine; the ratios are what counts.
"""
