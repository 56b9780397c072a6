"""What a pipeline's layers see when it runs: prompts, second moments, recorded denoiser calls."""
