"""The metadata of the cluster in a file: written by hand or on a schedule, and read back."""
