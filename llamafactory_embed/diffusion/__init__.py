"""What diffusion over text is: noise, noisy texts, blocks, and the bound; no training and no sampling."""
