"""What answers requests with a trained model: chat and lm-eval. Nothing here needs the code that trains."""
