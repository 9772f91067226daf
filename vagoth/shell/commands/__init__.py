"""The commands. Each resolves every name before it acts, and returns data."""
