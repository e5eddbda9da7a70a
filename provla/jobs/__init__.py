"""The jobs of a sweep on disk: which there are, who is at work, what they share."""
