"""Parts of XMAI: slots in captions, a language model of words, quality, and the experiment."""
