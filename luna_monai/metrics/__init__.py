"""Metrics of an epoch, calibration of probabilities, and LUNA16's FROC evaluation of a submission."""
