"""Detectors: from a crop of a picture to keypoints in it. One model a file."""
