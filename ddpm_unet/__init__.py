"""One U-Net that denoises, generates and segments."""
