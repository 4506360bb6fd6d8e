"""One open model in llama.cpp: decode, logits, rollback; vocabulary, tokeniser, chat template."""
