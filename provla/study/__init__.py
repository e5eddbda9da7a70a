"""Many runs: which jobs there are, and what they say together."""
