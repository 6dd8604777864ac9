"""Trained networks on images of any size: one predictor for runs, SavedModels, TFLite files and servers."""
