"""A policy over the network: clients' observations come in, chunks of actions go out."""
