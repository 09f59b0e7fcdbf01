"""Log perplexity and memory over one long text, block by block: `run_eval perplexity`."""
