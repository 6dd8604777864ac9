"""Honest figures: the LIVECell protocol, the Sartorius metric and the cell community scores."""
