"""The pieces of the U-Net: plain modules that know nothing of the network around them."""
