"""What all share: errors, checks, types, files, building. Imports nothing of the rest."""
