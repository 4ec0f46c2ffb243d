"""Files that an export copies into its folder. They import nothing of this package: who loads the folder has only
torch, transformers and sentence-transformers."""
