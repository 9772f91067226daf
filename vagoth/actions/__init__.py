"""What jobs run: one class for each verb, planned by a pure function and then run."""
