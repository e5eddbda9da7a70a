"""Models of transformers as towers, and which weights those are."""
