"""The loops that write tokens: greedy, beam search, sampling."""
