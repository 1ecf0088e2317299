"""unetrt.trainer: the 2015 U-Net in torch, its loss, its augmentation, and a loop around them."""
