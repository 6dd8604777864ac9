"""Weights that others trained, under our names: EfficientDets, ImageNet backbones, own runs."""
