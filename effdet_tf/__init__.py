"""EfficientDet with instance masks for label-free microscopy."""
