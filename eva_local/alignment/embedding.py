"""Mappings learned from output embeddings: EVA as published and mended, and our `eva-surface`.

EVA (Xu, Lu and Zhang: "Bridging the Gap between Different Vocabularies for LLM Ensemble", NAACL
2024) lays the output embeddings of two models over each other by the tokens that both have
(`vecmap`), and lets each token's probability flow to its nearest neighbours (`csls`).
"""
