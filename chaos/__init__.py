"""Proof by breaking: simulation of the consensus layer under faults, with an oracle that watches every step."""
