"""Requests and answers in the shape of OpenAI's API, and options as JSON writes them."""
