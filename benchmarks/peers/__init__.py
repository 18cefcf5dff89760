"""The same networks in `dl`, PyTorch and Keras, side by side; read `__main__` first, then `rounds`."""
