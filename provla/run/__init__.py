"""One run, from a configuration to its result; a policy judged again."""
