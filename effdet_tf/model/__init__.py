"""The network: backbone, BiFPN, heads and mask head, in keras.ops alone."""
