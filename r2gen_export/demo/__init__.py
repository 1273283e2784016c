"""The embedded demo bundle from nothing: phantoms, tokenizer, tiny LLaMA, tiny Swin, alignment, export, score."""
