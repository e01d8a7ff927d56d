"""Lifters: from the keypoints that one camera sees to positions in space. One model a file."""
