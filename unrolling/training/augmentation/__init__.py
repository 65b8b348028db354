"""Augmentations as pure functions of images and uniform numbers, and the mixing of a batch's images."""
