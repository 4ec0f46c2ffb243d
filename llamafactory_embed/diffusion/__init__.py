"""What diffusion over text is: noise, noisy texts, blocks, batches and the bound; no training and no sampling."""
