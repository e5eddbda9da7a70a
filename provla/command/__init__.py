"""What the commands share: composing, help, errors in words."""
