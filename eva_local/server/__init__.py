"""A local server in the shape of OpenAI's API."""
